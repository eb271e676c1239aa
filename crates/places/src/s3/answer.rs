//! Reads the object store's answers, which are XML.

use quick_xml::Reader;
use quick_xml::events::Event;

/// One object of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) bytes: u64,
    pub(super) etag: String,
    pub(super) modified_us: i64,
}

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<Object>,
    /// What to ask for the next page with.
    pub(super) next: Option<String>,
}

/// Calls `take` with the names of the open elements, outermost first, and the text inside the innermost, as each closes.
fn walk(body: &[u8], mut take: impl FnMut(&[String], &str)) -> Result<(), String> {
    let mut reader = Reader::from_reader(body);
    let mut open: Vec<String> = Vec::new();
    let mut text = String::new();
    let wrong = |e: &dyn std::fmt::Display| format!("its answer is not XML: {e}");
    loop {
        match reader.read_event().map_err(|e| wrong(&e))? {
            Event::Start(element) => {
                open.push(String::from_utf8_lossy(element.local_name().as_ref()).into_owned());
                text.clear();
            }
            Event::Text(part) => text.push_str(&part.decode().map_err(|e| wrong(&e))?),
            Event::GeneralRef(name) => {
                let resolved = match name.resolve_char_ref().map_err(|e| wrong(&e))? {
                    Some(c) => c.to_string(),
                    None => {
                        let name = name.decode().map_err(|e| wrong(&e))?;
                        let known = quick_xml::escape::resolve_predefined_entity(&name);
                        known
                            .ok_or_else(|| "its answer names an entity that XML does not define".to_owned())?
                            .to_owned()
                    }
                };
                text.push_str(&resolved);
            }
            Event::CData(part) => text.push_str(&String::from_utf8_lossy(&part)),
            Event::End(_) => {
                take(&open, &text);
                open.pop();
                text.clear();
            }
            Event::Eof => return if open.is_empty() { Ok(()) } else { Err("its answer ends early".into()) },
            _ => {}
        }
    }
}

/// Reads a page of `ListObjectsV2`.
pub(super) fn page(body: &[u8]) -> Result<Page, String> {
    let mut page = Page::default();
    let mut object = Object::default();
    let mut is_listing = false;
    walk(body, |open, text| {
        let names: Vec<&str> = open.iter().map(String::as_str).collect();
        match names.as_slice() {
            [_, "Contents", "Key"] => object.key = text.to_owned(),
            [_, "Contents", "Size"] => object.bytes = text.parse().unwrap_or(0),
            [_, "Contents", "ETag"] => object.etag = text.to_owned(),
            [_, "Contents", "LastModified"] => object.modified_us = time_us(text).unwrap_or(0),
            [_, "Contents"] => page.objects.push(std::mem::take(&mut object)),
            [_, "NextContinuationToken"] => page.next = Some(text.to_owned()).filter(|token| !token.is_empty()),
            ["ListBucketResult"] => is_listing = true,
            _ => {}
        }
    })?;
    if is_listing { Ok(page) } else { Err("its answer is not a listing; check storage.s3.endpoint".into()) }
}

/// The code of an error's body, such as `NoSuchKey`.
pub(crate) fn error_code(body: &[u8]) -> Option<String> {
    let mut code = None;
    walk(body, |open, text| {
        if open.iter().map(String::as_str).eq(["Error", "Code"]) {
            code = Some(text.to_owned());
        }
    })
    .ok()?;
    code
}

/// `2025-06-12T23:59:58.997Z` in microseconds since 1970.
fn time_us(text: &str) -> Option<i64> {
    let digits = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
    let (hour, minute, second) = (digits(11..13)?, digits(14..16)?, digits(17..19)?);
    // The inverse of the algorithm that dates are signed with.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_with_names_that_xml_escapes() {
        let body = br#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>lake</Name><Prefix>in/</Prefix><IsTruncated>true</IsTruncated>
<NextContinuationToken>to/ken=</NextContinuationToken>
<Contents><Key>in/API Error/a&amp;b&lt;&#xe9;.csv</Key><LastModified>2025-06-12T23:59:58.997Z</LastModified><ETag>&quot;d41d&quot;</ETag><Size>12</Size></Contents>
<Contents><Key>in/x</Key><Size>0</Size><Owner><ID>1</ID></Owner></Contents></ListBucketResult>"#;
        let page = page(body).unwrap();
        assert_eq!(page.next.as_deref(), Some("to/ken="));
        assert_eq!(page.objects.len(), 2);
        let first = &page.objects[0];
        assert_eq!((first.key.as_str(), first.etag.as_str(), first.bytes), ("in/API Error/a&b<é.csv", "\"d41d\"", 12));
        // date -u -d 2025-06-12T23:59:58Z +%s
        assert_eq!(first.modified_us, 1_749_772_798_000_000);
    }

    #[test]
    fn what_is_not_a_listing_is_refused() {
        for body in [
            &b"<html></html>"[..],
            b"<ListBucketResult><Contents>",
            b"",
            b"<ListBucketResult>&bomb;</ListBucketResult>",
        ] {
            assert!(page(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
        assert_eq!(error_code(b"<Error><Code>NoSuchKey</Code><Message>m</Message></Error>").unwrap(), "NoSuchKey");
        assert_eq!(error_code(b"not xml"), None);
    }
}

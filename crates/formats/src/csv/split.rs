//! CSV text to cells: where each field lies. One pass, eight bytes at a time between quotes.

/// Where a field lies in the window, its quotes left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    start: u32,
    end: u32,
}

/// In `start`: the field was in quotes. In `end`: it holds doubled quotes.
const FLAG: u32 = 1 << 31;

impl Cell {
    fn new(start: usize, end: usize, quoted: bool, doubled: bool) -> Self {
        let flag = |on: bool| if on { FLAG } else { 0 };
        let place = |p: usize| u32::try_from(p).unwrap_or(FLAG - 1) & !FLAG;
        Self { start: place(start) | flag(quoted), end: place(end) | flag(doubled) }
    }

    pub(crate) fn raw(self, window: &[u8]) -> &[u8] {
        window.get((self.start & !FLAG) as usize..(self.end & !FLAG) as usize).unwrap_or_default()
    }

    pub(crate) fn quoted(self) -> bool {
        self.start & FLAG != 0
    }

    /// Two quotes stand for one.
    pub(crate) fn doubled(self) -> bool {
        self.end & FLAG != 0
    }
}

/// How one row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    /// The next row begins there.
    Row(usize),
    /// The window ends inside the row.
    More,
    /// Something stands behind a closing quote, at this place.
    Quote(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Splitter {
    delimiter: u8,
    quote: u8,
    pattern: u64,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
const LINES: u64 = ONES * b'\n' as u64;

/// 0x80 in each byte that is zero, exactly.
fn zeros(x: u64) -> u64 {
    !(((x & LOW) + LOW) | x | LOW)
}

impl Splitter {
    pub(crate) fn new(delimiter: u8, quote: u8) -> Self {
        Self { delimiter, quote, pattern: ONES * u64::from(delimiter) }
    }

    /// Splits the row at `from`, appending its cells. At the file's end (`last`) the row needs no newline.
    pub(crate) fn split(&self, window: &[u8], from: usize, last: bool, cells: &mut Vec<Cell>) -> Split {
        let mut start = from;
        loop {
            if window.get(start) == Some(&self.quote) {
                match self.quoted(window, start, last, cells) {
                    Ok((next, true)) => return Split::Row(next),
                    Ok((next, false)) => start = next,
                    Err(split) => return split,
                }
                continue;
            }
            // Fields without quotes: as many as there are in a run, found without starting anew at each.
            let mut at = start;
            'run: loop {
                let Some(word) = window.get(at..at + 8).and_then(|w| <[u8; 8]>::try_from(w).ok()) else {
                    match self.tail(window, start, at, last, cells) {
                        Ok((next, true)) => return Split::Row(next),
                        Ok((next, false)) => {
                            start = next;
                            break 'run;
                        }
                        Err(split) => return split,
                    }
                };
                let word = u64::from_le_bytes(word);
                let lines = zeros(word ^ LINES);
                let mut hits = lines | zeros(word ^ self.pattern);
                while hits != 0 {
                    let bit = hits.trailing_zeros();
                    let end = at + (bit >> 3) as usize;
                    if (lines >> bit) & 1 != 0 {
                        cells.push(Cell::new(start, before_return(window, start, end), false, false));
                        return Split::Row(end + 1);
                    }
                    cells.push(Cell::new(start, end, false, false));
                    start = end + 1;
                    if window.get(start) == Some(&self.quote) {
                        break 'run;
                    }
                    hits &= hits - 1;
                }
                at += 8;
            }
        }
    }

    /// The end of one field near the window's end.
    fn tail(
        &self,
        window: &[u8],
        start: usize,
        from: usize,
        last: bool,
        cells: &mut Vec<Cell>,
    ) -> Result<(usize, bool), Split> {
        let rest = window.get(from..).unwrap_or_default();
        match memchr::memchr2(self.delimiter, b'\n', rest) {
            Some(at) if rest.get(at) == Some(&b'\n') => {
                cells.push(Cell::new(start, before_return(window, start, from + at), false, false));
                Ok((from + at + 1, true))
            }
            Some(at) => {
                cells.push(Cell::new(start, from + at, false, false));
                Ok((from + at + 1, false))
            }
            None if last => {
                cells.push(Cell::new(start, before_return(window, start, window.len()), false, false));
                Ok((window.len(), true))
            }
            None => Err(Split::More),
        }
    }

    /// A field in quotes; gives where the next field or row begins, and whether the row ended.
    fn quoted(&self, window: &[u8], start: usize, last: bool, cells: &mut Vec<Cell>) -> Result<(usize, bool), Split> {
        let (mut at, mut doubled) = (start + 1, false);
        loop {
            let rest = window.get(at..).unwrap_or_default();
            let Some(found) = memchr::memchr(self.quote, rest) else {
                return Err(if last { Split::Quote(start) } else { Split::More });
            };
            let end = at + found;
            let cell = Cell::new(start + 1, end, true, doubled);
            match (window.get(end + 1), window.get(end + 2)) {
                (Some(b), _) if *b == self.quote => {
                    doubled = true;
                    at = end + 2;
                }
                (Some(b), _) if *b == self.delimiter => {
                    cells.push(cell);
                    return Ok((end + 2, false));
                }
                (Some(b'\n'), _) => {
                    cells.push(cell);
                    return Ok((end + 2, true));
                }
                (Some(b'\r'), Some(b'\n')) => {
                    cells.push(cell);
                    return Ok((end + 3, true));
                }
                (None, _) | (Some(b'\r'), None) if !last => return Err(Split::More),
                (None, _) | (Some(b'\r'), None) => {
                    cells.push(cell);
                    return Ok((window.len(), true));
                }
                _ => return Err(Split::Quote(end + 1)),
            }
        }
    }
}

fn before_return(window: &[u8], start: usize, end: usize) -> usize {
    if end > start && window.get(end - 1) == Some(&b'\r') { end - 1 } else { end }
}

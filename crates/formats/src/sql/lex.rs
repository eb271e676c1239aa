//! SQL text to tokens, one at a time. A token that is longer than the limit is passed over and only its head is kept.

use std::io;

use crate::feed::Feed;

/// Whose dialect the dump is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    MySql,
    Postgres,
    Sqlite,
}

/// A token. The text of words, names, texts and numbers is in [`Lexer::text`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A word without quotes.
    Word,
    /// A name in backticks, brackets or double quotes.
    Name,
    /// A text in single quotes, or dollars.
    Text,
    /// Bytes, written as hex.
    Bytes,
    Number,
    Sign(u8),
    End,
}

/// Reads tokens.
pub(super) struct Lexer {
    pub(super) feed: Feed,
    pub(super) dialect: Dialect,
    pub(super) text: Vec<u8>,
    /// The newest token was longer than the limit.
    pub(super) cut: bool,
    most: usize,
    again: Option<Token>,
}

impl Lexer {
    pub(super) fn new(feed: Feed, dialect: Dialect, most: usize) -> Self {
        Self { feed, dialect, text: Vec::new(), cut: false, most, again: None }
    }

    /// The byte at a place behind the present one.
    fn peek(&mut self, at: usize) -> io::Result<Option<u8>> {
        while self.feed.window().len() <= at {
            if !self.feed.fill()? {
                return Ok(None);
            }
        }
        Ok(self.feed.window().get(at).copied())
    }

    /// Gives the newest token once more.
    pub(super) fn put_back(&mut self, token: Token) {
        self.again = Some(token);
    }

    pub(super) fn is_word(&self, token: Token, word: &str) -> bool {
        token == Token::Word && self.text.eq_ignore_ascii_case(word.as_bytes())
    }

    pub(super) fn next(&mut self) -> io::Result<Token> {
        if let Some(token) = self.again.take() {
            return Ok(token);
        }
        self.cut = false;
        self.blank()?;
        self.text.clear();
        let Some(first) = self.peek(0)? else { return Ok(Token::End) };
        match first {
            b'\'' => self.quoted(b'\'', self.dialect == Dialect::MySql).map(|()| Token::Text),
            // MySQL takes double quotes for texts, the others for names; who reads the token knows which is meant.
            b'"' => self.quoted(b'"', self.dialect == Dialect::MySql).map(|()| Token::Name),
            b'`' => self.quoted(b'`', false).map(|()| Token::Name),
            b'[' if self.dialect == Dialect::Sqlite => self.until(1, b"]").map(|()| Token::Name),
            b'$' if self.dialect == Dialect::Postgres => self.dollar(),
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1)?.is_some_and(|b| b.is_ascii_digit()) => self.number(),
            b'_' | b'@' | b'A'..=b'Z' | b'a'..=b'z' | 0x80.. => self.word(first),
            _ => {
                self.feed.consume(1);
                Ok(Token::Sign(first))
            }
        }
    }

    /// Passes over blanks and comments. What MySQL would execute in `/*! … */` is a comment here.
    fn blank(&mut self) -> io::Result<()> {
        loop {
            let window = self.feed.window();
            let blanks = window.iter().take_while(|b| b.is_ascii_whitespace()).count();
            let more = blanks == window.len();
            self.feed.consume(blanks);
            if more {
                if !self.feed.fill()? {
                    return Ok(());
                }
                continue;
            }
            match (self.peek(0)?, self.peek(1)?) {
                (Some(b'-'), Some(b'-')) => {
                    self.feed.skip_past(b'\n')?;
                }
                (Some(b'#'), _) if self.dialect == Dialect::MySql => {
                    self.feed.skip_past(b'\n')?;
                }
                (Some(b'/'), Some(b'*')) => {
                    self.feed.consume(2);
                    while self.feed.skip_past(b'*')? {
                        if self.peek(0)? == Some(b'/') {
                            self.feed.consume(1);
                            break;
                        }
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn keep(&mut self, count: usize) {
        let room = self.most.saturating_sub(self.text.len());
        self.cut |= count > room;
        let window = self.feed.window();
        self.text.extend_from_slice(window.get(..count.min(room)).unwrap_or_default());
        self.feed.consume(count);
    }

    fn push(&mut self, byte: u8) {
        if self.text.len() < self.most {
            self.text.push(byte);
        } else {
            self.cut = true;
        }
    }

    /// A text in quotes: a doubled quote stands for one; a backslash guards the next byte where the dialect says so.
    fn quoted(&mut self, quote: u8, escapes: bool) -> io::Result<()> {
        self.feed.consume(1);
        loop {
            let window = self.feed.window();
            let found = if escapes { memchr::memchr2(quote, b'\\', window) } else { memchr::memchr(quote, window) };
            let Some(at) = found else {
                let all = window.len();
                self.keep(all);
                if !self.feed.fill()? {
                    return Err(cut_off("a quoted text"));
                }
                continue;
            };
            self.keep(at);
            let (byte, next) = (self.peek(0)?, self.peek(1)?);
            match (byte, next) {
                (Some(b), Some(n)) if b == quote && n == quote => {
                    self.push(quote);
                    self.feed.consume(2);
                }
                (Some(b), _) if b == quote => {
                    self.feed.consume(1);
                    return Ok(());
                }
                (Some(_), Some(next)) => {
                    self.feed.consume(2);
                    self.escape(next)?;
                }
                _ => return Err(cut_off("a quoted text")),
            }
        }
    }

    fn escape(&mut self, byte: u8) -> io::Result<()> {
        if self.dialect == Dialect::Postgres {
            return self.postgres_escape(byte);
        }
        self.push(match byte {
            b'0' => 0,
            b'b' => 8,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'Z' => 26,
            other => other,
        });
        Ok(())
    }

    /// As in `E'…'`.
    fn postgres_escape(&mut self, byte: u8) -> io::Result<()> {
        match byte {
            b'b' => self.push(8),
            b'f' => self.push(12),
            b'n' => self.push(b'\n'),
            b'r' => self.push(b'\r'),
            b't' => self.push(b'\t'),
            b'0'..=b'7' => {
                let value = self.digits(u32::from(byte - b'0'), 8, 2)?;
                self.push(value.to_le_bytes()[0]);
            }
            b'x' => {
                let value = self.digits(0, 16, 2)?;
                self.push(value.to_le_bytes()[0]);
            }
            b'u' | b'U' => {
                let value = self.digits(0, 16, if byte == b'u' { 4 } else { 8 })?;
                let letter = char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER);
                letter.encode_utf8(&mut [0; 4]).bytes().for_each(|b| self.push(b));
            }
            other => self.push(other),
        }
        Ok(())
    }

    fn digits(&mut self, start: u32, radix: u32, most: usize) -> io::Result<u32> {
        let mut value = start;
        for _ in 0..most {
            let Some(digit) = self.peek(0)?.and_then(|b| char::from(b).to_digit(radix)) else { break };
            self.feed.consume(1);
            value = value.wrapping_mul(radix).wrapping_add(digit);
        }
        Ok(value)
    }

    /// Everything until a mark, which is passed over too.
    fn until(&mut self, skip: usize, mark: &[u8]) -> io::Result<()> {
        self.feed.consume(skip);
        loop {
            let window = self.feed.window();
            if let Some(at) = memchr::memmem::find(window, mark) {
                self.keep(at);
                self.feed.consume(mark.len());
                return Ok(());
            }
            // The mark may have begun.
            let sure = window.len().saturating_sub(mark.len() - 1);
            self.keep(sure);
            if !self.feed.fill()? {
                return Err(cut_off("a quoted text"));
            }
        }
    }

    /// `$tag$ … $tag$`, or a lone dollar.
    fn dollar(&mut self) -> io::Result<Token> {
        let mut tag = vec![b'$'];
        loop {
            match self.peek(tag.len())? {
                Some(b'$') => break,
                Some(b) if (b.is_ascii_alphanumeric() || b == b'_') && tag.len() < 64 => tag.push(b),
                _ => {
                    self.feed.consume(1);
                    return Ok(Token::Sign(b'$'));
                }
            }
        }
        tag.push(b'$');
        self.until(tag.len(), &tag).map(|()| Token::Text)
    }

    fn number(&mut self) -> io::Result<Token> {
        if self.peek(0)? == Some(b'0') && matches!(self.peek(1)?, Some(b'x' | b'X')) {
            self.feed.consume(2);
            while let Some(b) = self.peek(0)?.filter(u8::is_ascii_hexdigit) {
                self.push(b);
                self.feed.consume(1);
            }
            self.unhex();
            return Ok(Token::Bytes);
        }
        while let Some(b) = self.peek(0)? {
            let sign = matches!(b, b'+' | b'-') && matches!(self.text.last(), Some(b'e' | b'E'));
            if !(b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E') || sign) {
                break;
            }
            self.push(b);
            self.feed.consume(1);
        }
        Ok(Token::Number)
    }

    /// A word, or a text with a letter before it: `N'…'`, `E'…'`, `X'…'`, `_binary '…'`.
    fn word(&mut self, first: u8) -> io::Result<Token> {
        if self.peek(1)? == Some(b'\'') {
            match first {
                b'N' | b'n' | b'E' | b'e' | b'X' | b'x' => {
                    self.feed.consume(1);
                    self.quoted(b'\'', matches!(first, b'E' | b'e') || self.dialect == Dialect::MySql)?;
                    if matches!(first, b'X' | b'x') {
                        self.unhex();
                        return Ok(Token::Bytes);
                    }
                    return Ok(Token::Text);
                }
                b'B' | b'b' => {
                    self.feed.consume(1);
                    self.quoted(b'\'', false)?;
                    if self.dialect == Dialect::MySql {
                        self.unbits();
                        return Ok(Token::Bytes);
                    }
                    return Ok(Token::Text);
                }
                _ => {}
            }
        }
        while let Some(b) = self.peek(0)? {
            if !(b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'@') || b >= 0x80) {
                break;
            }
            self.push(b);
            self.feed.consume(1);
        }
        if self.text.first() == Some(&b'_') && self.dialect == Dialect::MySql {
            // A character set before a text says how its bytes are to be read; `binary` as bytes.
            let binary = self.text.eq_ignore_ascii_case(b"_binary");
            let word = std::mem::take(&mut self.text);
            self.blank()?;
            if self.peek(0)? == Some(b'\'') {
                self.quoted(b'\'', true)?;
                return Ok(if binary { Token::Bytes } else { Token::Text });
            }
            self.text = word;
        }
        Ok(Token::Word)
    }

    fn unhex(&mut self) {
        let digit = |b: u8| char::from(b).to_digit(16).unwrap_or(0).to_le_bytes()[0];
        let odd = self.text.len() % 2;
        let padded: Vec<u8> = std::iter::repeat_n(b'0', odd).chain(self.text.iter().copied()).collect();
        self.text = padded.chunks_exact(2).map(|p| p.iter().fold(0, |v, b| (v << 4) | digit(*b))).collect();
    }

    fn unbits(&mut self) {
        let odd = (8 - self.text.len() % 8) % 8;
        let padded: Vec<u8> = std::iter::repeat_n(b'0', odd).chain(self.text.iter().copied()).collect();
        self.text = padded.chunks_exact(8).map(|p| p.iter().fold(0, |v, b| (v << 1) | u8::from(*b == b'1'))).collect();
    }

    /// The rest of the present line, and its end.
    pub(super) fn skip_line(&mut self) -> io::Result<()> {
        self.feed.skip_past(b'\n').map(|_| ())
    }
}

pub(super) fn cut_off(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("{what} is not closed"))
}

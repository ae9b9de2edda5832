//! CSV, RFC 4180: bytes to records, without types.
//!
//! Written for what a load needs and general CSV readers do not tell: whether a field was quoted (an empty field is NULL
//! only when it was not), and on which line a record begins. A field that does not begin with a quote is taken as it is.

use std::{
    borrow::Cow,
    io::{self, Read},
};

/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A record that is longer is taken for a quote that was never closed.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// Reads records.
pub struct Records<R> {
    input: R,
    delimiter: u8,
    /// `buffer[start..end]` is read and not yet handed out.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    at_end_of_input: bool,
    /// Of the next record, from 1.
    line: u64,
    /// Bytes handed out.
    consumed: u64,
    fields: Vec<Span>,
    /// Start, line and bytes of the record handed out last.
    last: (usize, u64, u64),
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    quoted: bool,
    /// Has doubled quotes inside.
    escaped: bool,
}

/// One record: its fields, borrowed.
#[derive(Debug)]
pub struct Record<'a> {
    /// The line on which it begins, from 1.
    pub line: u64,
    bytes: &'a [u8],
    fields: &'a [Span],
}

/// A field's text, without its quotes.
#[derive(Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub bytes: Cow<'a, [u8]>,
    pub quoted: bool,
}

/// Why there is no next record.
#[derive(Debug)]
pub enum RecordError {
    /// The input cannot be read.
    Io(io::Error),
    /// The text breaks a rule of CSV.
    Broken {
        /// Where the record begins.
        line: u64,
        /// Which of its fields, from 0.
        field: usize,
        /// The rule.
        rule: &'static str,
    },
}

impl Record<'_> {
    /// The number of fields.
    pub fn field_count(&self) -> usize {
        self.fields.len()
    }

    /// A line with nothing on it.
    pub fn is_blank(&self) -> bool {
        self.fields.len() == 1 && self.is_empty_field(0)
    }

    /// A field with nothing in it, not even quotes.
    pub fn is_empty_field(&self, position: usize) -> bool {
        let span = self.fields[position];
        !span.quoted && span.start == span.end
    }

    /// A field by its position.
    pub fn field(&self, position: usize) -> Field<'_> {
        let span = self.fields[position];
        let bytes = &self.bytes[span.start..span.end];
        let bytes = if span.escaped { Cow::Owned(undouble(bytes)) } else { Cow::Borrowed(bytes) };
        Field { bytes, quoted: span.quoted }
    }
}

impl<R: Read> Records<R> {
    /// Reads from the start of `input`.
    pub fn new(input: R, delimiter: u8) -> Self {
        Records {
            input,
            delimiter,
            buffer: vec![0; CHUNK_BYTES],
            start: 0,
            end: 0,
            at_end_of_input: false,
            line: 1,
            consumed: 0,
            fields: Vec::new(),
            last: (0, 1, 0),
        }
    }

    /// Bytes of the records handed out so far.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Gives the last record again: it is what comes next.
    pub fn unread(&mut self) {
        (self.start, self.line, self.consumed) = self.last;
    }

    /// The next record; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, RecordError> {
        let (length, line_ends) = loop {
            if self.start == self.end && self.at_end_of_input {
                return Ok(None);
            }
            let bytes = &self.buffer[self.start..self.end];
            match scan(bytes, self.at_end_of_input, self.delimiter, &mut self.fields) {
                Scan::Record { length, line_ends } => break (length, line_ends),
                Scan::NeedsMore => self.fill()?,
                Scan::Broken { field, rule } => return Err(RecordError::Broken { line: self.line, field, rule }),
            }
        };
        let (start, line) = (self.start, self.line);
        self.last = (start, line, self.consumed);
        self.start += length;
        self.line += line_ends;
        self.consumed += length as u64;
        Ok(Some(Record { line, bytes: &self.buffer[start..start + length], fields: &self.fields }))
    }

    /// The record that was handed out last, once more.
    pub fn last_record(&self) -> Record<'_> {
        let (start, line, _) = self.last;
        Record { line, bytes: &self.buffer[start..self.start], fields: &self.fields }
    }

    fn fill(&mut self) -> Result<(), RecordError> {
        // What is left of the buffer moves to its front; a record that fills all of it gets a larger one.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            if self.end >= MAX_RECORD_BYTES {
                let field = self.fields.len();
                let rule = "a record is at most 64 MiB long: is a closing quote missing?";
                return Err(RecordError::Broken { line: self.line, field, rule });
            }
            self.buffer.resize(self.end * 2, 0);
        }
        let first = self.consumed == 0 && self.end == 0;
        loop {
            let read = match self.input.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(RecordError::Io)?,
            };
            self.end += read;
            self.at_end_of_input = read == 0;
            // The first bytes come together, however few are read at once: they may be a mark.
            if !first || read == 0 || self.end >= BYTE_ORDER_MARK.len() {
                break;
            }
        }
        // Some programs begin UTF-8 with a byte order mark.
        if first && self.buffer[..self.end].starts_with(BYTE_ORDER_MARK) {
            self.start = BYTE_ORDER_MARK.len();
            self.consumed = BYTE_ORDER_MARK.len() as u64;
        }
        Ok(())
    }
}

enum Scan {
    /// One record, its line end included.
    Record {
        length: usize,
        line_ends: u64,
    },
    /// The record does not end within the bytes.
    NeedsMore,
    Broken {
        field: usize,
        rule: &'static str,
    },
}

/// Finds the first record of `bytes`, and its fields.
fn scan(bytes: &[u8], at_end: bool, delimiter: u8, fields: &mut Vec<Span>) -> Scan {
    fields.clear();
    let mut at = 0;
    let mut line_ends = 0;
    loop {
        if bytes.get(at) == Some(&b'"') {
            let start = at + 1;
            let mut escaped = false;
            let mut from = start;
            let end = loop {
                let Some(quote) = bytes[from..].iter().position(|&byte| byte == b'"').map(|found| from + found) else {
                    if at_end {
                        return Scan::Broken { field: fields.len(), rule: "a quoted field has a closing quote" };
                    }
                    return Scan::NeedsMore;
                };
                match bytes.get(quote + 1) {
                    Some(b'"') => {
                        escaped = true;
                        from = quote + 2;
                    }
                    None if !at_end => return Scan::NeedsMore,
                    _ => break quote,
                }
            };
            line_ends += bytes[start..end].iter().filter(|&&byte| byte == b'\n').count() as u64;
            fields.push(Span { start, end, quoted: true, escaped });
            at = end + 1;
            match (bytes.get(at), bytes.get(at + 1)) {
                (None, _) => return Scan::Record { length: at, line_ends: line_ends + 1 },
                (Some(&byte), _) if byte == delimiter => at += 1,
                (Some(b'\n'), _) => return Scan::Record { length: at + 1, line_ends: line_ends + 1 },
                (Some(b'\r'), Some(b'\n')) => return Scan::Record { length: at + 2, line_ends: line_ends + 1 },
                (Some(b'\r'), None) if !at_end => return Scan::NeedsMore,
                _ => {
                    let rule = "after a closing quote comes a delimiter or the line's end; a quote inside is doubled";
                    return Scan::Broken { field: fields.len() - 1, rule };
                }
            }
        } else {
            let found = bytes[at..].iter().position(|&byte| byte == delimiter || byte == b'\n').map(|found| at + found);
            let end = match found {
                Some(end) => end,
                None if at_end => bytes.len(),
                None => return Scan::NeedsMore,
            };
            let span = Span { start: at, end, quoted: false, escaped: false };
            if found.is_some() && bytes[end] == delimiter {
                fields.push(span);
                at = end + 1;
                continue;
            }
            let end_of_text = if bytes[at..end].ends_with(b"\r") { end - 1 } else { end };
            fields.push(Span { end: end_of_text, ..span });
            let length = if found.is_some() { end + 1 } else { end };
            return Scan::Record { length, line_ends: line_ends + 1 };
        }
    }
}

fn undouble(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut bytes = bytes.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(byte);
        if byte == b'"' {
            // Its double.
            bytes.next();
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out few bytes at a time, so that records are cut everywhere.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    type Rows = Vec<(u64, Vec<(String, bool)>)>;

    fn read(text: &str, step: usize) -> Result<Rows, RecordError> {
        let mut records = Records::new(Trickle(text.as_bytes(), step), b',');
        let mut rows = Vec::new();
        while let Some(record) = records.next_record()? {
            let field = |at| {
                let Field { bytes, quoted } = record.field(at);
                (String::from_utf8(bytes.into_owned()).unwrap(), quoted)
            };
            rows.push((record.line, (0..record.field_count()).map(field).collect()));
        }
        assert_eq!(records.consumed(), text.len() as u64);
        Ok(rows)
    }

    #[test]
    fn records_are_the_same_however_the_bytes_arrive() {
        let text = "\u{feff}a,\"b\"\r\n\"x \"\"y\"\"\nz\",\n\n,\"\"\r\n5\" pipe,ä";
        let field = |text: &str, quoted| (text.to_owned(), quoted);
        let expected = vec![
            (1, vec![field("a", false), field("b", true)]),
            (2, vec![field("x \"y\"\nz", true), field("", false)]),
            (4, vec![field("", false)]),
            (5, vec![field("", false), field("", true)]),
            (6, vec![field("5\" pipe", false), field("ä", false)]),
        ];
        for step in [1, 2, 3, 7, 1000] {
            assert_eq!(read(text, step).unwrap(), expected, "in steps of {step}");
        }
        assert!(read("", 9).unwrap().is_empty());
        assert_eq!(read("a,", 1).unwrap(), vec![(1, vec![field("a", false), field("", false)])]);
    }

    #[test]
    fn a_record_may_be_longer_than_the_buffer() {
        let long = "x".repeat(3 * CHUNK_BYTES);
        let rows = read(&format!("a,{long}\nb,c\n"), usize::MAX).unwrap();
        assert_eq!(rows[0].1[1].0.len(), long.len());
        assert_eq!(rows[1].0, 2);
    }

    #[test]
    fn broken_quotes_name_line_and_field() {
        for step in [1, 1000] {
            let Err(RecordError::Broken { line: 2, field: 1, .. }) = read("a,b\nc,\"d\ne,f\n", step) else {
                panic!("an open quote was accepted");
            };
            let Err(RecordError::Broken { line: 3, field: 0, .. }) = read("a\n\n\"b\"c,d\n", step) else {
                panic!("text after a quote was accepted");
            };
        }
    }

    #[test]
    fn the_last_record_can_be_had_again() {
        let mut records = Records::new("a,b\nc,d\n".as_bytes(), b',');
        records.next_record().unwrap().unwrap();
        records.unread();
        for line in [1, 2] {
            assert_eq!(records.next_record().unwrap().unwrap().line, line);
        }
        assert!(records.next_record().unwrap().is_none());
    }
}

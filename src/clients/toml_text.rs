//! Where the statements of a TOML document stand, so that a line can be added and every other byte stays.
//!
//! The document has been parsed before: here nothing is checked again, and a slip in here is caught because what a
//! change leads to is parsed and compared with what it should lead to.

use super::BOM;
use std::ops::Range;
use toml::{Table, Value};

/// One statement: a header or a key with its value.
#[derive(Debug)]
pub(super) struct Statement {
    /// The byte at which its line begins.
    pub start: usize,
    /// The byte after its last line's end.
    pub end: usize,
    pub kind: StatementKind,
}

#[derive(Debug)]
pub(super) enum StatementKind {
    /// `[a.b]`
    Table(Vec<String>),
    /// `[[a.b]]`
    Array,
    /// `a.b = value`, and where the value stands.
    Pair(Vec<String>, Range<usize>),
}

/// What a document says.
///
/// # Errors
/// What is wrong and in which line.
pub(super) fn parse(text: &str) -> Result<Table, String> {
    let text = text.strip_prefix(BOM).unwrap_or(text);
    toml::from_str(text).map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        format!("line {line}: {}", e.message().trim_end().replace('\n', "; "))
    })
}

/// The statements of a document, in order.
pub(super) fn statements(text: &str) -> Vec<Statement> {
    let mut cursor = Cursor { text, at: if text.starts_with(BOM) { BOM.len() } else { 0 } };
    let mut found = Vec::new();
    while let Some(statement) = cursor.statement() {
        found.push(statement);
    }
    found
}

/// Where lines for the root table may be put in after its own keys: before the first header and the comment above it.
pub(super) fn end_of_root(text: &str, statements: &[Statement]) -> usize {
    let first = statements.iter().find(|s| !matches!(s.kind, StatementKind::Pair(..)));
    let Some(first) = first else { return text.len() };
    let lowest = if text.starts_with(BOM) { BOM.len() } else { 0 };
    let mut at = first.start;
    while at > lowest {
        let above = text[lowest..at - 1].rfind('\n').map_or(lowest, |n| lowest + n + 1);
        if !text[above..at].trim_start().starts_with('#') {
            break;
        }
        at = above;
    }
    at
}

/// A TOML basic string.
pub(super) fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The table at `path`, made where it does not exist; `None` if something else is there.
pub(super) fn table_at<'a>(table: &'a mut Table, path: &[&str]) -> Option<&'a mut Table> {
    let mut table = table;
    for key in path {
        table = table.entry(*key).or_insert_with(|| Value::Table(Table::new())).as_table_mut()?;
    }
    Some(table)
}

/// The value at `path`.
pub(super) fn value_at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (last, parents) = path.split_last()?;
    let mut table = table;
    for key in parents {
        table = table.get(*key)?.as_table()?;
    }
    table.get(*last)
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn looking_at(&self, what: &str) -> bool {
        self.text.as_bytes()[self.at..].starts_with(what.as_bytes())
    }

    fn skip_while(&mut self, which: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&which) {
            self.at += 1;
        }
    }

    fn skip_line(&mut self) {
        self.skip_while(|c| c != b'\n');
        self.at = (self.at + 1).min(self.text.len());
    }

    fn statement(&mut self) -> Option<Statement> {
        loop {
            self.skip_while(|c| c.is_ascii_whitespace());
            match self.peek()? {
                b'#' => self.skip_line(),
                _ => break,
            }
        }
        let start = self.text[..self.at].rfind('\n').map_or(0, |n| n + 1);
        let start = if start == 0 && self.text.starts_with(BOM) { BOM.len() } else { start };
        let kind = if self.looking_at("[[") {
            StatementKind::Array
        } else if self.peek() == Some(b'[') {
            self.at += 1;
            StatementKind::Table(self.key(b']'))
        } else {
            let key = self.key(b'=');
            self.at = (self.at + 1).min(self.text.len());
            self.skip_while(|c| c == b' ' || c == b'\t');
            let from = self.at;
            self.skip_value();
            let value = self.text[from..self.at].trim_end();
            StatementKind::Pair(key, from..from + value.len())
        };
        self.skip_line();
        Some(Statement { start, end: self.at, kind })
    }

    /// A dotted key, up to `end`.
    fn key(&mut self, end: u8) -> Vec<String> {
        let mut parts = Vec::new();
        while let Some(c) = self.peek().filter(|&c| c != end) {
            match c {
                b'"' | b'\'' => {
                    let from = self.at;
                    self.skip_string();
                    parts.push(self.text[from + 1..self.at.saturating_sub(1).max(from + 1)].to_owned());
                }
                b'.' | b' ' | b'\t' => self.at += 1,
                _ => {
                    let from = self.at;
                    self.skip_while(|c| !matches!(c, b'.' | b' ' | b'\t' | b'\n') && c != end);
                    if self.at == from {
                        // A line end, which a valid key does not have.
                        break;
                    }
                    parts.push(self.text[from..self.at].to_owned());
                }
            }
        }
        parts
    }

    /// Up to the comment or line end after a value.
    fn skip_value(&mut self) {
        let mut depth = 0usize;
        while let Some(c) = self.peek() {
            match c {
                b'"' | b'\'' => self.skip_string(),
                b'[' | b'{' => {
                    depth += 1;
                    self.at += 1;
                }
                b']' | b'}' => {
                    depth = depth.saturating_sub(1);
                    self.at += 1;
                }
                b'\n' if depth == 0 => return,
                b'#' if depth == 0 => return,
                b'#' => self.skip_while(|c| c != b'\n'),
                _ => self.at += 1,
            }
        }
    }

    fn skip_string(&mut self) {
        let quote = self.text[self.at..].chars().next().unwrap_or('"');
        let long: String = [quote; 3].iter().collect();
        let closing = if self.looking_at(&long) { long } else { quote.to_string() };
        self.at += closing.len();
        while self.at < self.text.len() {
            if quote == '"' && self.peek() == Some(b'\\') {
                self.at = (self.at + 2).min(self.text.len());
            } else if self.looking_at(&closing) {
                self.at += closing.len();
                // `""""` ends a long string that ends with a quote.
                while closing.len() == 3 && self.peek() == Some(quote as u8) {
                    self.at += 1;
                }
                return;
            } else {
                self.at += 1;
            }
        }
    }
}

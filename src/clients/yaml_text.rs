//! The part of YAML in which `registries.yaml` is written: nested mappings, lists of plain values, comments.
//!
//! Everything else - anchors, tags, text over several lines, several documents, tabs - is refused with the line that
//! has it, because a line put into such a file could end up inside something that it was not meant for. What is read
//! here means the same to every YAML reader.

use super::BOM;

/// One line that is no comment and not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The byte at which the line begins.
    pub start: usize,
    /// The byte after its end.
    pub end: usize,
    /// Spaces before its first character.
    pub indent: usize,
    pub content: YamlContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum YamlContent {
    /// `key: value`, the value's text (without comment) and where it stands.
    Pair { key: String, value: String, at: usize },
    /// `- value`
    Item { value: String },
}

/// The lines of a document.
///
/// # Errors
/// Which line is not in the part of YAML that is read here, and why.
pub(super) fn lines(text: &str) -> Result<Vec<Line>, String> {
    let mut found: Vec<Line> = Vec::new();
    let mut at = if text.starts_with(BOM) { BOM.len() } else { 0 };
    let mut number = 0;
    while at < text.len() {
        let start = at;
        let end = text[at..].find('\n').map_or(text.len(), |n| at + n + 1);
        (at, number) = (end, number + 1);
        let line = text[start..end].trim_end_matches('\n').trim_end_matches('\r');
        let content = line.trim_start_matches(' ');
        let indent = line.len() - content.len();
        let refused = |why: &str| Err(format!("line {number} {why}"));
        if content.starts_with('\t') {
            return refused("is indented with a tab");
        }
        if content.trim().is_empty() || content.starts_with('#') {
            continue;
        }
        if line.contains('\r') {
            return refused("has a carriage return in it");
        }
        if indent == 0 && (content.trim_end() == "---" && found.is_empty()) {
            continue;
        }
        if indent == 0
            && (content.starts_with("---") || content.starts_with("...") || content.starts_with('%'))
        {
            return refused("begins or ends a document");
        }
        let content = match entry(content, start + indent) {
            Ok(content) => content,
            Err(why) => return refused(why),
        };
        found.push(Line { start, end, indent, content });
    }
    check(&found).map_err(|(line, why)| format!("line {} {why}", 1 + text[..line].matches('\n').count()))?;
    Ok(found)
}

/// A line's content; `at` is where it begins in the text.
fn entry(content: &str, at: usize) -> Result<YamlContent, &'static str> {
    if content == "-" || content.starts_with("- ") {
        let value = content[1..].trim_start_matches(' ');
        let value = plain(value)?;
        if value.is_empty() {
            return Err("is an empty list entry");
        }
        if !value.starts_with(['"', '\'', '[', '{']) && (value.contains(": ") || value.ends_with(':')) {
            return Err("has a mapping in a list");
        }
        return Ok(YamlContent::Item { value: value.to_owned() });
    }
    let (key, rest) = match content.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let inner = &content[1..];
            let close = inner.find(quote).ok_or("has a key without a closing quote")?;
            if inner[..close].contains('\\') {
                return Err("has an escape in a key");
            }
            (&inner[..close], &inner[close + 1..])
        }
        Some('?' | '&' | '*' | '!' | '|' | '>' | '@' | '`' | '[' | '{' | ',') => {
            return Err("begins with a character that larder does not read");
        }
        _ => {
            let colon = content
                .char_indices()
                .find(|(n, c)| *c == ':' && matches!(content.as_bytes().get(n + 1), None | Some(b' ')))
                .ok_or("is neither `key: value` nor `- value`")?;
            (content[..colon.0].trim_end(), &content[colon.0..])
        }
    };
    if key.contains(" #") || key == "<<" || key.is_empty() {
        return Err("has a key that larder does not read");
    }
    let rest = rest.trim_start_matches(' ').strip_prefix(':').ok_or("has no colon after its key")?;
    if !rest.is_empty() && !rest.starts_with(' ') {
        return Err("has no space after its colon");
    }
    let value = rest.trim_start_matches(' ');
    let value_at = at + (content.len() - value.len());
    let value = plain(value)?;
    Ok(YamlContent::Pair { key: key.to_owned(), value: value.to_owned(), at: value_at })
}

/// A value without the comment after it, if it ends on its line and is not of a kind that is refused.
fn plain(value: &str) -> Result<&str, &'static str> {
    if value.starts_with('#') {
        return Ok("");
    }
    let mark = value.starts_with(['-', ':']) && matches!(value.as_bytes().get(1), None | Some(b' '));
    if mark || value.starts_with(['&', '*', '!', '|', '>', '@', '`', '%', '?', ',', ']', '}']) {
        return Err("has a value that larder does not read");
    }
    let mut quote = None;
    let mut depth = 0i32;
    let mut escaped = false;
    let mut before = ' ';
    let flow = value.starts_with(['[', '{']);
    let quoted = value.starts_with(['"', '\'']);
    let mut end = value.len();
    let mut closed_at = None;
    for (n, c) in value.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => {
                quote = None;
                closed_at = Some(n + 1);
            }
            Some(_) => {}
            None if c == '#' && before.is_whitespace() => {
                end = n;
                break;
            }
            // Two single quotes within single quotes are one.
            None if closed_at == Some(n) && c == '\'' && before == '\'' => quote = Some(c),
            None if closed_at == Some(n) && !matches!(c, ' ' | ',' | ']' | '}' | ':') => {
                return Err("has something after a quoted value");
            }
            None if matches!(c, '"' | '\'') && (flow || n == 0) => quote = Some(c),
            None if flow && (c == '[' || c == '{') => depth += 1,
            None if flow && (c == ']' || c == '}') => depth -= 1,
            None if flow && (c == '&' || c == '*' || c == '!') && !before.is_alphanumeric() => {
                return Err("has a value that larder does not read");
            }
            None => {}
        }
        before = c;
    }
    let value = value[..end].trim_end();
    if quote.is_some() || depth != 0 {
        return Err("has a value that goes on in the next line");
    }
    if quoted && closed_at.is_some_and(|at| at < value.len()) {
        return Err("has something after a quoted value");
    }
    if flow && !value.ends_with([']', '}']) {
        return Err("has something after a list");
    }
    if !flow && !quoted && (value.contains(": ") || value.ends_with(':')) {
        return Err("has a mapping in a value");
    }
    Ok(value)
}

/// The lines hang together as a tree: siblings have the same indent, what has a value has no children, no key comes
/// twice. The error is the byte of the line and what is wrong with it.
fn check(lines: &[Line]) -> Result<(), (usize, &'static str)> {
    // Open blocks: indent, whether it is a list, the keys so far.
    let mut open: Vec<(usize, bool, Vec<&str>)> = Vec::new();
    let mut parent_may_have: bool = true;
    let mut last_indent = 0;
    for (n, line) in lines.iter().enumerate() {
        let is_item = matches!(line.content, YamlContent::Item { .. });
        let fail = |why| Err((line.start, why));
        if n == 0 {
            if is_item {
                return fail("begins a list where a mapping is expected");
            }
            open.push((line.indent, false, Vec::new()));
        } else if line.indent > last_indent
            || (is_item && line.indent == last_indent && parent_may_have && !open.last().is_some_and(|o| o.1))
        {
            if !parent_may_have {
                return fail("goes on with what has a value already");
            }
            open.push((line.indent, is_item, Vec::new()));
        } else {
            // A list at the indent of its key is closed by the next key.
            while let Some(top) = open.last() {
                if top.0 > line.indent || (top.0 == line.indent && top.1 && !is_item) {
                    open.pop();
                } else {
                    break;
                }
            }
            match open.last() {
                Some(top) if top.0 == line.indent && top.1 == is_item => {}
                _ => return fail("is indented like nothing before it"),
            }
        }
        match &line.content {
            YamlContent::Pair { key, value, .. } => {
                if let Some(top) = open.last_mut() {
                    if top.2.contains(&key.as_str()) {
                        return fail("has a key for the second time");
                    }
                    top.2.push(key);
                }
                parent_may_have = value.is_empty();
            }
            YamlContent::Item { .. } => parent_may_have = false,
        }
        last_indent = line.indent;
    }
    Ok(())
}

/// Where the children of line `parent` end: the index of the first line after them.
pub(super) fn children_end(lines: &[Line], parent: usize) -> usize {
    let indent = lines[parent].indent;
    let list = matches!(lines.get(parent + 1).map(|line| (&line.content, line.indent)),
        Some((YamlContent::Item { .. }, at)) if at == indent);
    let inside = |line: &Line| {
        line.indent > indent
            || (list && line.indent == indent && matches!(line.content, YamlContent::Item { .. }))
    };
    let from = parent + 1;
    lines[from..].iter().position(|line| !inside(line)).map_or(lines.len(), |n| from + n)
}

/// The index of the child of `parent` (of the document if `None`) with that key.
pub(super) fn child(lines: &[Line], parent: Option<usize>, wanted: &str) -> Option<usize> {
    let (from, to) = parent.map_or((0, lines.len()), |parent| (parent + 1, children_end(lines, parent)));
    let indent = lines.get(from)?.indent;
    (from..to).find(|&n| {
        lines[n].indent == indent
            && matches!(&lines[n].content, YamlContent::Pair { key, .. } if key == wanted)
    })
}

/// The indent of the children of `parent`, if it has any.
pub(super) fn child_indent(lines: &[Line], parent: usize) -> Option<usize> {
    (children_end(lines, parent) > parent + 1).then(|| lines[parent + 1].indent)
}

/// The values of a list, written over lines or in brackets; empty for anything else.
pub(super) fn list(lines: &[Line], key: usize) -> Vec<String> {
    if let YamlContent::Pair { value, .. } = &lines[key].content
        && !value.is_empty()
    {
        let Some(inner) = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')) else {
            return Vec::new();
        };
        return inner.split(',').map(|one| unquoted(one.trim())).filter(|one| !one.is_empty()).collect();
    }
    let items = lines[key + 1..children_end(lines, key)].iter();
    items
        .filter_map(|line| match &line.content {
            YamlContent::Item { value } => Some(unquoted(value)),
            YamlContent::Pair { .. } => None,
        })
        .collect()
}

/// A value without its quotes. Addresses have no escapes; one that has is compared as it is written.
pub(super) fn unquoted(value: &str) -> String {
    let inner = |quote: char| value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(value).to_owned()
}

/// Everything a document says: the keys down to each value, and the value. Two texts that say the same have the same
/// list, whatever their comments, order within a mapping and quotes.
pub(super) fn said(lines: &[Line]) -> Vec<(Vec<String>, String)> {
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut all = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let keep = |depth: usize, is_item: bool| depth < line.indent || (is_item && depth == line.indent);
        match &line.content {
            YamlContent::Pair { key, value, .. } => {
                path.retain(|(depth, _)| keep(*depth, false));
                path.push((line.indent, key.clone()));
                let keys: Vec<String> = path.iter().map(|(_, key)| key.clone()).collect();
                if value.starts_with('[') {
                    all.extend(list(lines, n).into_iter().map(|one| (keys.clone(), one)));
                } else if !value.is_empty() {
                    all.push((keys, unquoted(value)));
                }
            }
            YamlContent::Item { value } => {
                path.retain(|(depth, _)| keep(*depth, true));
                all.push((path.iter().map(|(_, key)| key.clone()).collect(), unquoted(value)));
            }
        }
    }
    all
}

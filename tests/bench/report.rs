//! The tables of docs/performance.md, which the benchmarks write themselves.

use std::path::Path;

use crate::Fallible;

/// Puts a part's table between its marks.
pub fn put(part: &str, table: &str) -> Fallible<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    let document = std::fs::read_to_string(&path)?;
    std::fs::write(&path, within(&document, part, table)?)?;
    Ok(())
}

/// The document with that between the marks of a part.
fn within(document: &str, part: &str, table: &str) -> Fallible<String> {
    let (from, to) = (format!("<!-- bench: {part} -->"), format!("<!-- end of {part} -->"));
    let marked =
        document.split_once(&from).and_then(|(before, rest)| Some((before, rest.split_once(&to)?.1)));
    let Some((before, after)) = marked else {
        return Err(format!("docs/performance.md has no {from} with {to} behind it").into());
    };
    Ok(format!("{before}{from}\n{}\n{to}{after}", table.trim()))
}

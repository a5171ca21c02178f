//! docs/history.md: every row names tests that exist, or says that it is open.

use crate::shell;
use anyhow::{Result, bail};

/// Faults whose regression tests may not go, whatever else is open.
const FAULTS: &[&str] =
    &["1.16", "1.17", "1.60", "1.79", "1.95", "1.111", "1.117", "1.133", "1.136", "1.137", "1.138", "1.146", "1.150"];

pub(crate) fn check() -> Result<()> {
    let table = std::fs::read_to_string(shell::root().join("docs/history.md"))?;
    let text_of = |path: &str| {
        let folder = if is_kernels(path) { "" } else { "crates" };
        std::fs::read_to_string(shell::root().join(folder).join(path)).ok()
    };
    let wrong = wrong_rows(&table, text_of);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// What is wrong with a table, given the files' texts.
fn wrong_rows(table: &str, text_of: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut held = Vec::new();
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [from, what, tests] = cells[..] else {
            wrong.push(format!("docs/history.md: a row has {} cells: {row}", cells.len()));
            continue;
        };
        if tests == "open" {
            continue;
        }
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            wrong.push(format!("docs/history.md: {from}, {what}: names no test and is not open"));
        }
        for name in &names {
            let Some((path, function)) = name.split_once("::") else {
                wrong.push(format!("docs/history.md: {name} is not path.rs::name"));
                continue;
            };
            let has = if is_kernels(path) { has_function } else { has_test };
            if !text_of(path).is_some_and(|text| has(&text, function)) {
                wrong.push(format!("docs/history.md: there is no test {function} in {path}"));
            }
        }
        held.extend(from.split([',', ' ', '–']).map(|from| from.trim_start_matches('N').to_owned()));
    }
    let missing = FAULTS.iter().filter(|fault| !held.iter().any(|held| held == *fault));
    wrong.extend(missing.map(|fault| format!("docs/history.md: no row with a test for {fault}")));
    wrong
}

/// Whether a test is one of the booted kernel, which `cargo xtask kernel` runs: its path is from the root.
fn is_kernels(path: &str) -> bool {
    path.starts_with("testkernel/") || path.starts_with("xtask/")
}

/// Whether a function of this name is in a file.
fn has_function(text: &str, name: &str) -> bool {
    text.lines().any(|line| line.trim().contains(&format!("fn {name}(")))
}

/// Whether a test of this name is in a file: a function behind `#[test]`, or in `proptest!`.
fn has_test(text: &str, name: &str) -> bool {
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            if is_test && rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')) {
                return true;
            }
            is_test = false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_history_has_its_tests() {
        check().unwrap();
    }

    #[test]
    fn rows_without_tests_are_found() {
        let faults: String = FAULTS.iter().map(|fault| format!("| N{fault} | x | `a.rs::one` |\n")).collect();
        let table = |rows: &str| format!("| From | What | Tests |\n| --- | --- | --- |\n{faults}{rows}");
        let files = |path: &str| (path == "a.rs").then(|| "#[test]\n    fn one() {\n\nfn two() {\n".to_owned());
        let wrong = |rows: &str| wrong_rows(&table(rows), files).len();
        assert_eq!(wrong("| F | x | `a.rs::one` |\n| F | y | open |\n"), 0);
        for rows in
            ["| F | x | later |\n", "| F | x | `a.rs::two` |\n", "| F | x | `b.rs::one` |\n", "| F | x | `one` |\n"]
        {
            assert_eq!(wrong(rows), 1, "{rows}");
        }
        assert_eq!(wrong_rows("| a | b | c |\n| --- | --- | --- |\n", files).len(), FAULTS.len());
    }
}

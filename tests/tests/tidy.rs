//! The rules of the house, as far as a test can check them: headers, sizes, arrows between crates, where `unsafe`
//! may stand, and links that lead somewhere.
//!
//! It reads the files that git knows (or would take in), so that nothing built or downloaded disturbs it.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use tests::repository;

/// A longer file is asking to be two.
const MAX_FILE_LINES: usize = 600;

/// A longer function is asking to be two.
const MAX_FUNCTION_LINES: usize = 70;

/// Where `unsafe` may stand: the slab, the ring, the vector kernels.
const UNSAFE_PLACES: [&str; 3] = ["raidcore/src/buf/", "raidcore/src/uring/", "raidcore/src/parity/"];

struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The code without comments and without the texts of string literals; line numbers stay.
    fn code(&self) -> Vec<String> {
        self.text.lines().map(code_of_line).collect()
    }
}

fn files_ending_in(suffixes: &[&str]) -> Vec<Source> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(repository())
        .output()
        .expect("git lists the files");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("file names are UTF-8");
    let wanted = names.lines().filter(|name| suffixes.iter().any(|suffix| name.ends_with(suffix)));
    let read = wanted.filter_map(|name| {
        // A file that was removed but not yet committed is still listed.
        let text = std::fs::read_to_string(repository().join(name)).ok()?;
        Some(Source { path: name.to_string(), text })
    });
    let files: Vec<Source> = read.collect();
    assert!(!files.is_empty(), "no files end in {suffixes:?}");
    files
}

fn rust_files() -> Vec<Source> {
    files_ending_in(&[".rs"])
}

/// Cuts off a comment and empties string literals. Raw strings over several lines are not understood, which is
/// good enough for what is searched here.
fn code_of_line(line: &str) -> String {
    let (mut code, mut in_string, mut chars) = (String::new(), false, line.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => drop(chars.next()),
            '\'' if !in_string && chars.peek() == Some(&'"') => drop(chars.next()),
            '"' => {
                in_string = !in_string;
                code.push(c);
            }
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            _ if in_string => {}
            _ => code.push(c),
        }
    }
    code
}

/// Fails with all findings at once.
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

fn has_word(code: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word))
}

#[test]
fn every_file_opens_by_saying_what_it_is() {
    let silent = |file: &Source| !file.text.starts_with("//! ");
    none(
        rust_files()
            .into_iter()
            .filter(silent)
            .map(|file| file.path + ": does not open with `//!`")
            .collect(),
    );
}

#[test]
fn no_file_is_too_long_to_be_read() {
    let long = |file: &Source| file.text.lines().count() > MAX_FILE_LINES;
    none(rust_files().into_iter().filter(long).map(|file| file.path + ": too many lines").collect());
}

#[test]
fn no_function_is_too_long_to_be_read() {
    let mut findings = Vec::new();
    for file in rust_files() {
        // rustfmt puts a function's closing brace at the indentation of its first line.
        let mut open: Option<(usize, String, String)> = None;
        for (number, line) in file.text.lines().enumerate() {
            let indent = &line[..line.len() - line.trim_start().len()];
            match &open {
                Some((start, end, name)) if line == end => {
                    if number - start + 1 > MAX_FUNCTION_LINES {
                        findings.push(format!(
                            "{}:{}: {} lines: {name}",
                            file.path,
                            start + 1,
                            number - start + 1
                        ));
                    }
                    open = None;
                }
                Some(_) => {}
                None if has_word(&code_of_line(line), "fn") && !line.ends_with([';', '}']) => {
                    open = Some((number, format!("{indent}}}"), line.trim().to_string()));
                }
                None => {}
            }
        }
    }
    none(findings);
}

#[test]
fn unsafe_code_stands_in_three_places_and_says_why_it_is_sound() {
    let mut findings = Vec::new();
    for file in rust_files() {
        let allowed = UNSAFE_PLACES.iter().any(|place| file.path.starts_with(place));
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, code) in file.code().iter().enumerate() {
            // `unsafe extern` and `unsafe fn` state a duty; a block or an impl fulfils one.
            let fulfils =
                has_word(code, "unsafe") && (code.contains("unsafe {") || code.contains("unsafe impl"));
            let at = format!("{}:{}", file.path, number + 1);
            if has_word(code, "unsafe") && !allowed {
                findings.push(format!("{at}: unsafe outside of {UNSAFE_PLACES:?}"));
            } else if fulfils && !explained(&lines, number) {
                findings.push(format!("{at}: no SAFETY comment"));
            }
        }
    }
    none(findings);
}

/// Whether the statement of this line has a SAFETY comment on it or on the lines above.
fn explained(lines: &[&str], number: usize) -> bool {
    let above = lines[..number].iter().rev().take(8);
    let block = above.take_while(|line| !line.trim().is_empty() && !line.trim_end().ends_with(';'));
    lines[number].contains("SAFETY:") || block.into_iter().any(|line| line.contains("SAFETY:"))
}

#[test]
fn arrows_between_crates_point_one_way() {
    // A place, and the words its code may not have in it.
    let forbidden: [(&str, &[&str]); 5] = [
        ("raidcore/", &["mpath", "nbd_server"]),
        ("mpath/", &["nbd_server"]),
        (
            "nbd-server/src/proto/",
            &["std::net", "std::os", "std::fs", "rustix", "io_uring", "UnixStream", "TcpStream"],
        ),
        ("raidcore/src/layout/", &["std::fs", "rustix", "libc", "io_uring", "BlockDev"]),
        ("raidcore/src/sim/", &["rustix", "libc", "io_uring", "Instant", "SystemTime"]),
    ];
    let mut findings = Vec::new();
    for file in rust_files() {
        for (place, words) in forbidden {
            let in_place =
                file.path.starts_with(place) || file.path == place.trim_end_matches('/').to_owned() + ".rs";
            for (number, code) in file.code().iter().enumerate().filter(|_| in_place) {
                for word in words.iter().filter(|word| has_word(code, word)) {
                    findings.push(format!("{}:{}: {word} in {place}", file.path, number + 1));
                }
            }
        }
    }
    none(findings);
}

#[test]
fn nothing_claims_to_be_done_later() {
    let mut findings = Vec::new();
    for file in rust_files() {
        for (number, code) in file.code().iter().enumerate() {
            let unfinished =
                ["todo!", "unimplemented!", "dbg!", "#[ignore]"].iter().find(|word| code.contains(*word));
            if let Some(word) = unfinished {
                findings.push(format!("{}:{}: {word}", file.path, number + 1));
            }
        }
    }
    none(findings);
}

#[test]
fn nothing_speaks_of_the_place_it_was_written_in() {
    // Composed, so that this file does not find itself.
    let words = [["../sha", "red"].concat(), ["/wo", "rk/"].concat()];
    let numbered = ["iss", "ue "].concat();
    let mut findings = Vec::new();
    for file in files_ending_in(&[".rs", ".md", ".toml", ".sh", ".c", ".yml", "test", "run"]) {
        for (number, line) in file.text.lines().enumerate() {
            // `target/work/` and the like are fine: only an absolute path is one of this machine.
            let is_place =
                |(at, _): (usize, &str)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let is_number = |(at, _): (usize, &str)| {
                line[at + numbered.len()..].starts_with(|c: char| c.is_ascii_digit())
            };
            if words.iter().any(|word| line.match_indices(word.as_str()).any(is_place))
                || line.match_indices(numbered.as_str()).any(is_number)
            {
                findings.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    none(findings);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut findings = Vec::new();
    for file in files_ending_in(&[".md"]) {
        let folder = Path::new(&file.path).parent().expect("a file has a folder");
        for (_, rest) in file.text.match_indices("](").map(|(at, _)| file.text.split_at(at + 2)) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            let foreign = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !foreign && !repository().join(folder).join(target).exists() {
                findings.push(format!("{}: {target} does not exist", file.path));
            }
        }
    }
    none(findings);
}

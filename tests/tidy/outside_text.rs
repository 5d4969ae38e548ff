//! Text of others passes one function on its way in, and again on its way to a terminal or a log.

use std::fs;
use std::path::Path;

use super::rust_files;

/// Texts of the protocol that are not for people, each with the reason why it is taken as it came.
const AS_THEY_CAME: &[(&str, &str)] = &[
    ("auth_key", "a secret, compared and never shown"),
    ("reference", "refused unless it is short ASCII"),
    ("reason", "made by us: why an entry cannot be read"),
    ("ip", "parsed at once, and refused where it is no address"),
];

#[test]
fn every_text_of_the_protocol_is_clean_and_bounded_where_it_comes_in() {
    let mut errors = Vec::new();
    let mut fields = 0;

    for file in rust_files(Path::new("src/core/wire/control")) {
        let text = fs::read_to_string(&file).unwrap();
        let mut attribute = String::new();
        for line in text.split("#[cfg(test)]").next().unwrap().lines() {
            let field = line.trim().strip_prefix("pub ").and_then(|rest| rest.strip_suffix(": String,"));
            if let Some(field) = field {
                fields += 1;
                let clean = attribute.contains("clean_text::<_, {");
                if !clean && !AS_THEY_CAME.iter().any(|(name, _)| *name == field) {
                    errors.push(format!("{}: `{field}` is taken as it comes", file.display()));
                }
            }
            // An attribute is between the field before and this one.
            if line.trim_end().ends_with(',') && line.trim_start().starts_with("pub ") {
                attribute.clear();
            } else {
                attribute.push_str(line);
            }
        }
    }

    assert!(fields > 40, "only {fields} fields were found");
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn what_is_printed_passes_the_cleaner() {
    let mut errors = Vec::new();

    for file in rust_files(Path::new("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let shown =
            if super::is_unit_tests(&file) { "" } else { text.split("#[cfg(test)]\nmod tests").next().unwrap() };
        for line in shown.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            let prints = ["println!(", "eprintln!(", "print!(", "eprint!("].iter().any(|call| line.starts_with(call));
            // A test that cannot run here says so.
            let passes = line.contains("Line(") || line.contains("Lines(") || line.contains("\"SKIPPED");
            if prints && line.contains('{') && !passes {
                errors.push(format!("{}: shown as it is: {line}", file.display()));
            }
            let writes = line.contains("stdout()") && !line.contains("Screen::new(") && !line.contains("is_terminal()");
            // `run` of the command line and of the administration put a screen before it.
            if writes && !line.contains("run(args, &mut std::io::stdout())") && !line.contains("return written(") {
                errors.push(format!("{}: past the screen: {line}", file.display()));
            }
        }
        let logs = shown.contains("tracing_subscriber::fmt()") || shown.contains("fmt::layer()");
        if logs && !shown.contains(".fmt_fields(CleanFields)") {
            errors.push(format!("{}: logs texts as they are", file.display()));
        }
    }

    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

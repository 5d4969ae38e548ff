//! The policy compiler against captured answers of the official coordination service.
//!
//! The captures are not part of the project: `WARREN_POLICY_CAPTURES` names their folder, and `make captures` runs the
//! test that reads them, which is ignored otherwise. Each line of each `*.jsonl` is one policy, its network, and what every
//! node of it was told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod behaviour;
mod capture;
mod compare;
mod different;
mod random;

use std::path::PathBuf;
use std::{env, fs};

use capture::Capture;

#[test]
#[ignore = "reads captures that are no part of the project: WARREN_POLICY_CAPTURES=FOLDER make captures"]
fn every_capture_agrees_or_is_listed_as_different_on_purpose() {
    let folder =
        env::var_os("WARREN_POLICY_CAPTURES").expect("WARREN_POLICY_CAPTURES names the folder of the captures");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ext| ext == "jsonl"));
    files.sort();
    assert!(!files.is_empty(), "{}: no captures there", folder.display());

    let (mut all, mut agreeing, mut surprises) = (0, 0, Vec::new());
    for file in &files {
        let (mut of_file, mut agreeing_of_file) = (0, 0);
        for line in fs::read_to_string(file).unwrap().lines().filter(|line| !line.trim().is_empty()) {
            let capture: Capture =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let differences = compare::differences(&capture);
            let listed = different::reason(&capture.id);
            of_file += 1;
            agreeing_of_file += usize::from(differences.is_empty());
            match (differences.is_empty(), listed) {
                (true, None) => {}
                (false, Some(reason)) => println!("{}: different on purpose: {reason}", capture.id),
                (true, Some(_)) => surprises.push(format!("{}: listed as different, but agrees", capture.id)),
                (false, None) => surprises.push(format!("{}:\n    {}", capture.id, differences.join("\n    "))),
            }
        }
        println!("captures: {agreeing_of_file} of {of_file} agree in {}", file.file_name().unwrap().to_string_lossy());
        all += of_file;
        agreeing += agreeing_of_file;
    }
    println!("captures: {agreeing} of {all} agree");
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
}

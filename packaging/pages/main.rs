//! What packages carry beside programs, made from the programs' own account of themselves: manual pages and completions
//! of each command line, the licences of the crates that are linked, and a bill of these crates (CycloneDX).
//!
//!     cargo run -p warren-pages -- FOLDER DATE PLATFORM
//!
//! The pages bear the date, as 2026-11-30; the platform is that of the programs, as x86_64-unknown-linux-gnu.

mod crates;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

/// Each program, its section of the manual, and the package that has it.
fn programs() -> [(Command, &'static str, &'static str); 4] {
    [
        (warren_agent::cli::Args::command(), "1", "warren"),
        (warren_agent::Config::command(), "8", "warren"),
        (warren_coordinator::Cli::command(), "8", "warren-coordinator"),
        (warren_relay::Cli::command(), "8", "warren-relay"),
    ]
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("the folder to write into is missing")?);
    let date = arguments.next().ok_or("the date is missing")?;
    let platform = arguments.next().ok_or("the platform is missing")?;
    for (command, section, package) in programs() {
        let folder = folder.join(package);
        write_manual(&command, section, &date, &folder.join("man"))?;
        write_completions(command, &folder.join("completions"))?;
    }
    crates::write(&folder, &platform)
}

/// A page for the program and one for each command within it, named after both: `warren-status(1)`.
fn write_manual(command: &Command, section: &str, date: &str, folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let mut built = command.clone().disable_help_subcommand(true);
    built.build();
    write_pages(&built, section, date, folder)
}

fn write_pages(command: &Command, section: &str, date: &str, folder: &Path) -> Result<(), Box<dyn Error>> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        write_pages(inner, section, date, folder)?;
    }
    let page = clap_mangen::Man::new(command.clone()).section(section).date(date);
    page.source("Warren").manual("Warren manual").generate_to(folder)?;
    Ok(())
}

fn write_completions(mut command: Command, folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, folder)?;
    }
    Ok(())
}

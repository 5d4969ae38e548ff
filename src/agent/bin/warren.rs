//! The command line: `warren`.

use std::process::ExitCode;

use clap::Parser;
use warren_agent::cli::{Args, Exit, run};
use warren_core::types::text::Lines;

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("warren: start: {}", Lines(error));
            return Exit::Failed.into();
        }
    };
    match runtime.block_on(run(args, &mut std::io::stdout())) {
        Ok(exit) => exit.into(),
        Err(error) => {
            if !error.is_closed_pipe() {
                eprintln!("warren: {}", Lines(&error));
            }
            error.exit().into()
        }
    }
}

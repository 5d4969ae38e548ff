//! The agent: `warrend`.

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use warren::agent::{Config, serve};

fn main() -> ExitCode {
    let config = match Config::read(std::env::args_os()) {
        Ok(config) => config,
        Err((text, 0)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err((text, status)) => {
            eprintln!("{text}");
            return status.into();
        }
    };
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("warrend: invalid value '{}' for '--log <FILTER>': {error}", config.log);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    match serve(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warrend: {error}");
            ExitCode::FAILURE
        }
    }
}

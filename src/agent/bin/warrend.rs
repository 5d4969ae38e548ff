//! The agent: `warrend`.

use std::path::Path;
use std::process::ExitCode;

use warren_agent::{Config, StateDir, init_logging, serve, serve_dns_helper};
use warren_core::types::text::{Line, Lines};

fn main() -> ExitCode {
    let config = match Config::read(std::env::args_os()) {
        Ok(config) => config,
        Err((text, 0)) => {
            print!("{}", Lines(text));
            return ExitCode::SUCCESS;
        }
        Err((text, status)) => {
            eprintln!("{}", Lines(text));
            return status.into();
        }
    };
    if let Err(error) = init_logging(&config.log) {
        eprintln!("warrend: invalid value '{}' for '--log <FILTER>': {}", Line(&config.log), Lines(error));
        return ExitCode::from(2);
    }
    if config.dns_helper {
        return match serve_dns_helper(Path::new(&config.dns_socket)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("warrend: {}", Lines(error));
                ExitCode::FAILURE
            }
        };
    }
    // Like a setting that cannot be used, this does not get better by trying. Cleaning up reads no state.
    if let (false, Err(error)) = (config.cleanup, StateDir::check_format(&config.state_dir)) {
        eprintln!("warrend: {}", Lines(error));
        return ExitCode::from(2);
    }
    if config.check {
        println!("warrend: the settings, and the state that is there, can be used");
        return ExitCode::SUCCESS;
    }
    match serve(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warrend: {}", Lines(error));
            ExitCode::FAILURE
        }
    }
}

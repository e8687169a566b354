//! Parses the command line, starts logging, runs, and exits with the code that the contract lists.

use std::process::ExitCode;

use audience_sync::cli;

fn main() -> ExitCode {
    // Writing to a closed pipe ends the program quietly, as it does for other tools.
    cli::run(std::env::args_os())
}

//! Larder's binary: argv to command to exit status. Everything else is in the library.

fn main() -> std::process::ExitCode {
    larder::cli::main()
}

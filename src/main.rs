//! Parse the command line, run the program, map the result to an exit code.
fn main() -> std::process::ExitCode {
    menshen::app::main()
}

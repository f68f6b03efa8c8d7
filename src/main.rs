//! The `ashlar` program: everything is in the library, from [`ashlar::cli`] on.

fn main() -> std::process::ExitCode {
    ashlar::cli::run()
}

//! The command `strata`. See the crate `strata_sidecar`.

fn main() -> std::process::ExitCode {
    strata_sidecar::cli::main()
}

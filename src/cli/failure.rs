//! How a command ends when it does not end well, and the exit code that says so.

use std::fmt;
use std::process::ExitCode;

use super::logging;
use crate::config::ConfigError;
use crate::store::ErrorKind;
use crate::volume::VolumeError;

/// What a command returns.
pub type Outcome = Result<(), Failure>;

/// Why a command ends with another exit code than 0.
#[derive(Debug)]
pub enum Failure {
    /// What was asked for was not done (exit code 1).
    Failed(String),
    /// The arguments or the configuration make no sense (exit code 2).
    Usage(String),
    /// `check` found damage and has said so (exit code 3).
    Damaged,
    /// `doctor` found something wrong and has said so (exit code 1, without a word).
    Unwell,
    /// The volume is encrypted, and the key is missing or wrong (exit code 4).
    Locked(String),
    /// `serve` was told to stop twice, or before it had begun (exit code 130, as for a program that ended by an interrupt).
    LeftEarly,
    /// Whoever reads the output went away (exit code 1, without a word).
    NobodyReads,
}

impl Failure {
    /// A failure with these words.
    pub fn failed(error: impl ToString) -> Failure {
        Failure::Failed(error.to_string())
    }

    /// Wrong usage, in these words.
    pub fn usage(error: impl ToString) -> Failure {
        Failure::Usage(error.to_string())
    }

    /// Says what there is to say, and returns the exit code.
    pub fn report(&self) -> ExitCode {
        if let Failure::Failed(words) | Failure::Usage(words) | Failure::Locked(words) = self {
            logging::say_last(&format!("ashlar: {words}"));
        }
        logging::finish();
        ExitCode::from(match self {
            Failure::Failed(_) | Failure::Unwell | Failure::NobodyReads => 1,
            Failure::Usage(_) => 2,
            Failure::Damaged => 3,
            Failure::Locked(_) => 4,
            Failure::LeftEarly => 130,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Failed(words) | Failure::Usage(words) | Failure::Locked(words) => words,
            Failure::Damaged => "there is damage",
            Failure::Unwell => "something is wrong",
            Failure::LeftEarly => "left before everything was done",
            Failure::NobodyReads => "nobody reads the output",
        })
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Failure {
        match error {
            VolumeError::Locked { .. } => Failure::Locked(error.to_string()),
            // The bucket is missing, or the like.
            VolumeError::Store { ref source, .. } if source.kind == ErrorKind::Invalid => Failure::usage(error),
            error => Failure::failed(error),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::usage(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    #[test]
    fn a_store_that_is_not_there_is_wrong_usage_whichever_command_finds_out() {
        let of = |kind| VolumeError::Store {
            doing: "listing s3://disks".into(),
            source: StoreError::new(kind, "no bucket"),
        };
        let missing = Failure::from(of(ErrorKind::Invalid));
        assert!(matches!(missing, Failure::Usage(words) if words == "listing s3://disks: no bucket"));
        assert!(matches!(Failure::from(of(ErrorKind::Retryable)), Failure::Failed(_)));
        assert!(matches!(Failure::from(of(ErrorKind::Denied)), Failure::Failed(_)));
    }
}

//! The errors of fragments. Each names the file and what in it was wrong.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a fragment could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FragmentError {
    /// The operating system refused.
    #[error("could not access fragment file {path:?}: {source}", path = .path.display().to_string())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("fragment file {path:?} is damaged: {what}", path = .path.display().to_string())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part of it is wrong, and how.
        what: String,
    },
    /// There is no such file.
    #[error("fragment file {path:?} does not exist", path = .path.display().to_string())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later version of Strata.
    #[error("fragment file {path:?} has format version {found}, this version reads {supported}", path = .path.display().to_string())]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// The format version in the file.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// The file uses an encoding that this version does not have.
    #[error("fragment file {path:?} uses encoding {encoding:?}, which this version cannot read", path = .path.display().to_string())]
    UnsupportedEncoding {
        /// The file.
        path: PathBuf,
        /// The Vortex encoding.
        encoding: String,
    },
    /// The caller asked for something that cannot be.
    #[error("invalid fragment input: {what}")]
    InvalidInput {
        /// The value that was wrong.
        what: String,
    },
    /// A column chunk could not be encoded so that it decodes to the same values.
    #[error("could not encode column {column:?} for fragment in {path:?}: {what}", path = .path.display().to_string())]
    Encode {
        /// The folder that the fragment was to be written to.
        path: PathBuf,
        /// The column.
        column: String,
        /// What went wrong.
        what: String,
    },
}

/// The result of everything here.
pub type Result<T, E = FragmentError> = std::result::Result<T, E>;

impl FragmentError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            Self::Missing { path: path.to_path_buf() }
        } else {
            Self::Io { path: path.to_path_buf(), source }
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), what: what.into() }
    }

    pub(crate) fn input(what: impl Into<String>) -> Self {
        Self::InvalidInput { what: what.into() }
    }
}

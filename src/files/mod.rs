//! Files by their path, opened without waiting and read within a limit.
//!
//! A path in the data folder or in the configuration may be anything by the time it is opened: a pipe, at which a plain
//! open would wait for ever, a device without an end, a folder. Whatever is no regular file is an error here, and so is one
//! that is longer than its reader has use for. [`Watched`] reads files again when they change.

mod watched;

pub use watched::Watched;

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a regular file as `options` say.
///
/// # Errors
/// Those of open(2), and that it is no regular file.
pub fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let special = || io::Error::other("it is not a file");
    match options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(special()),
        // A pipe without a reader, a socket, or a device that is not there.
        Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Err(special()),
        Err(e) => Err(e),
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// As [`open_with`].
pub fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path)
}

/// All of a file that has at most `most` bytes.
///
/// # Errors
/// As [`open_with`], those of read(2), and that it is longer.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_all(open(path)?, most)
}

/// The same of a text.
///
/// # Errors
/// As [`read`], and that it is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    text(read(path, most)?)
}

/// A text that the owner names on the command line, which may come from a pipe, such as a shell's `<(...)`.
///
/// # Errors
/// As [`read_text`], but that it may be no regular file.
pub fn read_named(path: &Path, most: u64) -> io::Result<String> {
    text(read_all(File::open(path)?, most)?)
}

fn read_all(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes, the limit for such a file")));
    }
    Ok(bytes)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode};
    use std::path::PathBuf;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("larder-files-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_no_regular_file_is_an_error_at_once() {
        let folder = folder("special");
        let pipe = folder.join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let both = || OpenOptions::new().read(true).write(true).clone();
        for path in [pipe.as_path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
            assert_eq!(open(path).unwrap_err().to_string(), "it is not a file", "{}", path.display());
            assert!(open_with(&mut both(), path).is_err());
            assert!(read(path, 10).is_err());
        }
        assert!(open_with(OpenOptions::new().write(true), &pipe).is_err());
        assert!(read(&folder, 10).is_err());
        assert_eq!(open(&folder.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn no_more_is_read_than_the_limit() {
        let folder = folder("limit");
        let path = folder.join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        assert!(read(&path, 4).unwrap_err().to_string().contains("larger than 4 bytes"));
        assert!(read_named(Path::new("/dev/zero"), 1000).unwrap_err().to_string().contains("larger than"));
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 5).is_err());
    }
}

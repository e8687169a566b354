//! Files and folders that are still there after a power cut, and that only their owner may read.
//!
//! A file is on disk when it is synced, and its name when its folder is: <https://lwn.net/Articles/457667/>.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

/// Makes a folder and those above it that are missing, each with its name on disk.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = above(folder);
    if above != folder {
        create_folder(above)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists || !folder.is_dir() => {
            return Err(error);
        }
        _ => {}
    }
    sync_folder(above)
}

/// Puts the names in a folder on disk. Windows has no way to ask for that, and needs none.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// The folder that a path stands in.
pub fn above(path: &Path) -> &Path {
    path.parent()
        .filter(|above| !above.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The file that a path means, by whatever links and whether or not it is there yet: a link that leads nowhere is where
/// a file is made too. Links among the folders are for the system to follow.
pub fn target(path: &Path) -> PathBuf {
    // As many as Linux follows. In a circle there is no file, and whoever opens it is told so.
    const MOST_LINKS: usize = 40;

    let mut target = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&target) {
            Ok(next) => target = above(&target).join(next),
            Err(_) => break,
        }
    }
    target
}

/// How to open a file that holds people's ids: made for its owner only.
pub fn private() -> fs::OpenOptions {
    let mut options = File::options();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// The size of a file of SQLite's that ends inside a page, as none does: SQLite reads on with zeros.
/// <https://sqlite.org/fileformat.html#pages>
pub fn cut_off(path: &Path) -> Option<u64> {
    cut_off_at(&mut File::open(path).ok()?)
}

/// The same of an open file, at its beginning.
pub fn cut_off_at(file: &mut File) -> Option<u64> {
    const SMALLEST_PAGE: u64 = 512;

    let bytes = file.metadata().ok()?.len();
    if bytes < SMALLEST_PAGE {
        return Some(bytes);
    }
    let mut header = [0; 18];
    file.read_exact(&mut header).ok()?;
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        page => u64::from(page).max(SMALLEST_PAGE),
    };
    // Anything else is for SQLite to refuse.
    (header.starts_with(b"SQLite format 3\0") && !bytes.is_multiple_of(page)).then_some(bytes)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_found_by_links_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("state")).unwrap();
        symlink("state/next", at("link")).unwrap();
        symlink("file", at("state/next")).unwrap();
        assert_eq!(target(&at("link")), at("state/file"));
        fs::write(at("state/file"), "").unwrap();
        assert_eq!(target(&at("link")), at("state/file"));
        symlink(at("state/file"), at("absolute")).unwrap();
        assert_eq!(target(&at("absolute")), at("state/file"));
        symlink("circle", at("circle")).unwrap();
        assert_eq!(target(&at("circle")), at("circle"));
    }
}

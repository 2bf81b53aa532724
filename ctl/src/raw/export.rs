//! `kvctl raw export`: pairs in key order, across regions, into a file or pipe.
//!
//! A file is written beside its place under the name with `.tmp` and renamed when it is complete and synced, so the
//! name never stands for half an export. Memory does not grow with the range.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::TryStreamExt as _;
use serde::Serialize;

use crate::cli::{Export, Global};
use crate::error::{Error, Result};
use crate::format::Encoder;
use crate::output::stdout_error;
use crate::{connect, pairs, progress};

/// Progress; the end of the range is not known.
pub(crate) const SPINNER: &str = "{spinner} {human_pos} pairs  {per_sec}  {elapsed}";

const BUFFER_BYTES: usize = 256 << 10;
/// The bar moves once in so many pairs.
const BAR_STEP: u64 = 1024;

/// What an export did.
#[derive(Debug, Serialize)]
struct Summary {
    pairs: u64,
    bytes: u64,
    seconds: f64,
}

/// Runs the export.
pub async fn run(global: &Global, args: Export) -> Result<()> {
    let range = pairs::range(&args.range)?;
    let client = connect::raw(global).await?;
    let mut target = Target::create(&args.file)?;
    let bar = progress::bar(None, SPINNER);
    let started = Instant::now();
    let encoder = Encoder::new(args.format);
    let (mut pairs, mut bytes) = (0, 0);
    let mut line = Vec::new();
    let mut stream = client.scan(range).stream();
    while let Some(pair) = stream.try_next().await? {
        line.clear();
        encoder.encode(&pair.key, &pair.value, &mut line);
        target.write(&line)?;
        pairs += 1;
        bytes += line.len() as u64;
        if pairs % BAR_STEP == 0 {
            bar.set_position(pairs);
        }
    }
    let is_file = target.is_file();
    target.complete()?;
    bar.finish_and_clear();
    let summary = Summary { pairs, bytes, seconds: started.elapsed().as_secs_f64() };
    let text = format!("{pairs} pairs, {} in {:.2} s", crate::table::bytes(bytes), summary.seconds);
    if is_file {
        return global.output.print(&summary, |_| text);
    }
    // Standard output belongs to the pairs.
    eprintln!("{text}");
    Ok(())
}

/// Where the pairs go.
enum Target {
    Stdout(BufWriter<std::io::Stdout>),
    File(PartFile),
}

impl Target {
    fn create(path: &Path) -> Result<Target> {
        if path == Path::new("-") {
            return Ok(Target::Stdout(BufWriter::with_capacity(BUFFER_BYTES, std::io::stdout())));
        }
        PartFile::create(path).map(Target::File)
    }

    fn is_file(&self) -> bool {
        matches!(self, Target::File(_))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Target::Stdout(out) => out.write_all(bytes).map_err(stdout_error),
            Target::File(part) => part.out.write_all(bytes).map_err(Error::io(&part.temporary)),
        }
    }

    fn complete(self) -> Result<()> {
        match self {
            Target::Stdout(mut out) => out.flush().map_err(stdout_error),
            Target::File(part) => part.complete(),
        }
    }
}

/// A file that is not complete yet; dropping it removes it.
struct PartFile {
    out: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    completed: bool,
}

impl PartFile {
    fn create(path: &Path) -> Result<PartFile> {
        if path.is_dir() {
            return Err(Error::Usage(format!("{} is a directory; name a file", path.display())));
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".tmp");
        let temporary = PathBuf::from(name);
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(PartFile { out, temporary, path: path.to_owned(), completed: false })
    }

    fn complete(mut self) -> Result<()> {
        self.out.flush().and_then(|()| self.out.get_ref().sync_all()).map_err(Error::io(&self.temporary))?;
        std::fs::rename(&self.temporary, &self.path).map_err(Error::io(&self.path))?;
        self.completed = true;
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(Error::io(directory))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.completed {
            // The export failed with its own error; a file that stays behind is not worth another.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.tsv");
        std::fs::write(&path, "old").unwrap();
        let mut target = Target::create(&path).unwrap();
        target.write(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(target);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let mut target = Target::create(&path).unwrap();
        target.write(b"new").unwrap();
        target.complete().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

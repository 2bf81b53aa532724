//! Disks that can be filled, made read-only, or lose power: small ext4 file systems in loop files.
//!
//! They are mounted in a mount namespace of the calling thread, which the processes it starts share, so nothing of
//! them is seen elsewhere and all is gone with the last of those processes, however the test ends. Needs root.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// ext4's request to stop at once, as if power were lost.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// Nothing that is in memory is written, not even the journal.
const NO_LOG_FLUSH: u32 = 2;
/// Bytes that filling a disk leaves at most.
const LEFT_BYTES: u64 = 16 << 10;

/// A file system of its own.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    dir: PathBuf,
}

/// Whether disks can be made here.
///
/// # Panics
/// In CI, where no test may be left out.
pub fn available() -> bool {
    // SAFETY: a plain system call without arguments.
    let root = unsafe { libc::geteuid() } == 0;
    assert!(root || std::env::var_os("CI").is_none(), "tests with disks of their own need root");
    if !root {
        eprintln!("left out: a disk of its own needs root");
    }
    root
}

impl Disk {
    /// Makes a file system of `mebibytes` in `home` and mounts it. The thread must be the one that starts the
    /// processes which are to see it.
    pub fn create(home: &Path, name: &str, mebibytes: u64) -> io::Result<Disk> {
        private_mounts()?;
        let (image, dir) = (home.join(format!("{name}.img")), home.join(name));
        std::fs::create_dir_all(&dir)?;
        File::create(&image)?.set_len(mebibytes << 20)?;
        // No blocks kept for root: the processes here are root.
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-O", "^metadata_csum_seed"]).arg(&image))?;
        let disk = Disk { image, dir };
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn mount(&self) -> io::Result<()> {
        let options = ["-o", "loop,errors=remount-ro"];
        run(Command::new("mount").args(options).arg(&self.image).arg(&self.dir))
    }

    /// Writes a file that takes all the room there is.
    pub fn fill(&self) -> io::Result<()> {
        self.fill_but(0)
    }

    /// Writes a file that leaves that many bytes.
    pub fn fill_but(&self, left: u64) -> io::Result<()> {
        let ballast = File::create(self.ballast())?;
        let mut bytes = 1u64 << 30;
        let mut taken = 0;
        while bytes >= LEFT_BYTES {
            // SAFETY: a plain system call on a descriptor that is open.
            match unsafe { libc::posix_fallocate(ballast.as_raw_fd(), taken, bytes as libc::off_t) } {
                0 => taken += bytes as libc::off_t,
                _ => bytes /= 2,
            }
        }
        let length = u64::try_from(taken).map_err(io::Error::other)?;
        ballast.set_len(length.saturating_sub(left))?;
        ballast.sync_all()
    }

    /// Makes room again.
    pub fn empty(&self) -> io::Result<()> {
        std::fs::remove_file(self.ballast())
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    /// The file system meets an error and goes read-only under those who use it.
    pub fn fail_read_only(&self) -> io::Result<()> {
        let device = self.device()?;
        std::fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1")
    }

    /// Name of the loop device, such as `loop0`.
    fn device(&self) -> io::Result<String> {
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts")?;
        let dir = self.dir.display().to_string();
        let device = mounts.lines().map(|line| line.split(' ')).find_map(|mut fields| {
            let device = fields.next()?;
            (fields.next()? == dir).then(|| device.trim_start_matches("/dev/").to_string())
        });
        device.ok_or_else(|| io::Error::other(format!("{dir} is not mounted")))
    }

    /// Power is lost: what was not synced will be gone, and every access fails until [`Disk::come_back`].
    pub fn lose_power(&self) -> io::Result<()> {
        let root = File::open(&self.dir)?;
        // SAFETY: the request takes a pointer to 32 bits, which it only reads.
        match unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN as _, &NO_LOG_FLUSH) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Mounts the disk again after it failed, as a restart of its machine would. Nobody may use it.
    pub fn come_back(&self) -> io::Result<()> {
        run(Command::new("umount").arg(&self.dir))?;
        // What a start of the machine does; it says by its exit code that it mended something.
        let checked = Command::new("e2fsck").args(["-p", "-f"]).arg(&self.image).output()?;
        if checked.status.code().is_none_or(|code| code > 1) {
            return Err(io::Error::other(String::from_utf8_lossy(&checked.stdout).into_owned()));
        }
        self.mount()
    }
}

/// Gives this thread, and the processes it starts, mounts of their own.
fn private_mounts() -> io::Result<()> {
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if DONE.replace(true) {
        return Ok(());
    }
    // SAFETY: plain system calls; the strings are literals that end with a zero byte, and unused ones may be null.
    let failed = unsafe {
        libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn run(command: &mut Command) -> io::Result<()> {
    let done = command.output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_disk_fills_up_and_empties() {
        if !available() {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let disk = Disk::create(home.path(), "disk", 16).unwrap();
        disk.fill().unwrap();
        let write = || std::fs::write(disk.dir().join("file"), vec![1; 1 << 20]);
        assert_eq!(write().unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.empty().unwrap();
        write().unwrap();
        disk.fail_read_only().unwrap();
        assert_eq!(write().unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        disk.come_back().unwrap();
        write().unwrap();
    }

    #[test]
    fn a_power_loss_keeps_what_was_synced_and_nothing_else() {
        if !available() {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let disk = Disk::create(home.path(), "disk", 16).unwrap();
        let mut file = File::create(disk.dir().join("file")).unwrap();
        file.write_all(b"synced").unwrap();
        file.sync_all().unwrap();
        File::open(disk.dir()).unwrap().sync_all().unwrap();
        file.write_all(b", lost").unwrap();
        disk.lose_power().unwrap();
        assert!(file.sync_all().is_err());
        drop(file);
        disk.come_back().unwrap();
        assert_eq!(std::fs::read(disk.dir().join("file")).unwrap(), b"synced");
    }
}

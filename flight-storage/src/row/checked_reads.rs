//! Compares each page that SQLite reads from the row file with its sum ([`super::pages`]): a bit that flips on the disk while
//! the server runs is an error at once, and no answer.
//!
//! SQLite reads files through a *VFS* (<https://sqlite.org/vfs.html>). The one here is the operating system's, but for two
//! methods of the main file:
//!
//! ```text
//! xOpen    of the system, then its table of methods is exchanged for a copy with the two below
//! xRead    of the system, then the page is compared: SQLITE_CORRUPT if it is another one than was written
//! xClose   the system's table comes back, and closes
//! ```
//!
//! A page that a checkpoint is about to write has no sum until it is written. Whoever reads a page of the file holds a lock
//! by which SQLite keeps checkpoints away from that page, so none is compared with a sum that came later.

// SQLite's interface is C's; nothing but what is there said of it is relied upon.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_int, c_void},
    path::{Path, PathBuf},
    ptr, slice,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use drsdb_core::{Error, Result};
use parking_lot::{Mutex, RwLock};
use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

use super::pages::{UNKNOWN, sum_of};

/// The VFS's name, for those who open the file.
pub(super) const VFS: &CStr = c"drsdb-checked";

/// What the pages of a file have to be.
#[derive(Debug, Default)]
pub(super) struct Expected {
    page_bytes: AtomicUsize,
    /// By page, from 0.
    sums: RwLock<Vec<u32>>,
}

impl Expected {
    /// From now on pages are compared.
    pub(super) fn begin(&self, page_bytes: usize, sums: &[u32]) {
        sums.clone_into(&mut self.sums.write());
        self.page_bytes.store(page_bytes, Ordering::Release);
    }

    /// The sum of a page, or [`UNKNOWN`].
    pub(super) fn set(&self, page: usize, sum: u32) {
        let mut sums = self.sums.write();
        if sums.len() <= page {
            sums.resize(page + 1, UNKNOWN);
        }
        sums[page] = sum;
    }

    /// Whether what was read is what was written. Parts of a page are read before there is a transaction, to see whether it is
    /// a database at all.
    fn holds(&self, bytes: &[u8], offset: u64) -> bool {
        let page_bytes = self.page_bytes.load(Ordering::Acquire);
        if page_bytes == 0 || bytes.len() != page_bytes || !offset.is_multiple_of(page_bytes as u64) {
            return true;
        }
        let page = usize::try_from(offset / page_bytes as u64).unwrap_or(usize::MAX);
        let sum = self.sums.read().get(page).copied().unwrap_or(UNKNOWN);
        sum == UNKNOWN || sum == sum_of(bytes)
    }
}

/// The files whose pages are compared, by their names as SQLite has them.
static FILES: Mutex<BTreeMap<PathBuf, Weak<Expected>>> = Mutex::new(BTreeMap::new());

/// Lets the file at `path`, which may not be there yet, be opened with [`VFS`].
pub(super) fn watch(path: &Path) -> Result<Arc<Expected>> {
    register()?;
    let context = |error| Error::io(format!("finding {}", path.display()), error);
    let (folder, name) = (path.parent().unwrap_or(Path::new(".")), path.file_name().unwrap_or_default());
    let full = folder.canonicalize().map_err(context)?.join(name);
    let expected = Arc::new(Expected::default());
    let mut files = FILES.lock();
    files.retain(|_, known| known.strong_count() > 0);
    files.insert(full, Arc::downgrade(&expected));
    Ok(expected)
}

fn find(name: &Path) -> Option<Arc<Expected>> {
    FILES.lock().get(name).and_then(Weak::upgrade)
}

/// The operating system's VFS. SQLite keeps it for as long as the process lives.
struct System(*mut sqlite3_vfs);

// SAFETY: the VFS is not changed after SQLite has made it, and its methods may be called by any thread.
unsafe impl Send for System {}
// SAFETY: the same.
unsafe impl Sync for System {}

static SYSTEM: OnceLock<Option<System>> = OnceLock::new();

fn system() -> Option<*mut sqlite3_vfs> {
    SYSTEM.get()?.as_ref().map(|system| system.0)
}

fn register() -> Result<()> {
    let registered = SYSTEM.get_or_init(|| {
        // SAFETY: NULL asks for the default VFS; what is answered lives as long as the process.
        let system = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        // SAFETY: it points to a VFS unless it is NULL.
        let mut checked = unsafe { system.as_ref() }.copied()?;
        checked.szOsFile = i32::try_from(extra_at(&checked) + size_of::<Extra>()).ok()?;
        checked.zName = VFS.as_ptr();
        checked.pNext = ptr::null_mut();
        checked.xOpen = Some(open);
        // SAFETY: SQLite keeps the pointer, and it is leaked for that.
        let code = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(checked)), 0) };
        (code == ffi::SQLITE_OK).then_some(System(system))
    });
    match registered {
        Some(_) => Ok(()),
        None => Err(Error::internal("SQLite takes no VFS, by which its reads are checked")),
    }
}

/// What follows the system's part of an open file.
struct Extra {
    methods: *const sqlite3_io_methods,
    /// Of [`Arc::into_raw`].
    expected: *const Expected,
}

/// Where it is, from the file's start.
fn extra_at(system: &sqlite3_vfs) -> usize {
    (system.szOsFile.max(0) as usize).next_multiple_of(align_of::<Extra>())
}

/// SAFETY: `file` is one that [`open`] was given, which has room for it.
unsafe fn extra_of(file: *mut sqlite3_file) -> *mut Extra {
    let system = system().expect("a file was opened, so the VFS is there");
    // SAFETY: the system's VFS lives as long as the process; SQLite allocates szOsFile bytes, aligned to 8.
    unsafe { file.cast::<u8>().add(extra_at(&*system)).cast() }
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let Some(system) = system() else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: it is called as SQLite called this, with a file that has more room than the system's VFS asks for.
    let code = unsafe {
        let Some(open) = (*system).xOpen else { return ffi::SQLITE_CANTOPEN };
        open(system, name, file, flags, out)
    };
    if code != ffi::SQLITE_OK || flags & ffi::SQLITE_OPEN_MAIN_DB == 0 || name.is_null() {
        return code;
    }
    // SAFETY: a name that is not NULL is a C string, and a file that was opened has methods.
    unsafe {
        let name = CStr::from_ptr(name).to_str().map(Path::new);
        let (Ok(name), false) = (name, (*file).pMethods.is_null()) else { return code };
        if let Some(expected) = find(name) {
            let methods = (*file).pMethods;
            extra_of(file).write(Extra { methods, expected: Arc::into_raw(expected) });
            (*file).pMethods = checked(methods);
        }
    }
    code
}

/// The system's methods, but for two. There are few different ones, so they are kept.
fn checked(methods: *const sqlite3_io_methods) -> *const sqlite3_io_methods {
    struct Made(*const sqlite3_io_methods, &'static sqlite3_io_methods);
    // SAFETY: the pointer is compared and not followed.
    unsafe impl Send for Made {}
    static MADE: Mutex<Vec<Made>> = Mutex::new(Vec::new());
    let mut made = MADE.lock();
    if let Some(known) = made.iter().find(|known| known.0 == methods) {
        return known.1;
    }
    // SAFETY: the methods of an open file.
    let own = sqlite3_io_methods { xRead: Some(read), xClose: Some(close), ..unsafe { *methods } };
    let own: &'static sqlite3_io_methods = Box::leak(Box::new(own));
    made.push(Made(methods, own));
    own
}

unsafe extern "C" fn read(file: *mut sqlite3_file, buffer: *mut c_void, amount: c_int, offset: sqlite3_int64) -> c_int {
    // SAFETY: only files have this method that `open` has given an Extra, until `close` takes it.
    let extra = unsafe { &*extra_of(file) };
    // SAFETY: it is called as SQLite called this.
    let code = unsafe {
        let Some(read) = (*extra.methods).xRead else { return ffi::SQLITE_IOERR_READ };
        read(file, buffer, amount, offset)
    };
    if code != ffi::SQLITE_OK {
        return code;
    }
    let (Ok(amount), Ok(offset)) = (usize::try_from(amount), u64::try_from(offset)) else { return code };
    // SAFETY: the buffer has `amount` bytes, which were just written; the Arc lives until `close`.
    let holds = unsafe { (*extra.expected).holds(slice::from_raw_parts(buffer.cast(), amount), offset) };
    if holds { code } else { ffi::SQLITE_CORRUPT }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: as for `read`; SQLite closes a file once. From here on it has the system's methods.
    unsafe {
        let Extra { methods, expected } = extra_of(file).read();
        drop(Arc::from_raw(expected));
        (*file).pMethods = methods;
        match (*methods).xClose {
            Some(close) => close(file),
            None => ffi::SQLITE_OK,
        }
    }
}

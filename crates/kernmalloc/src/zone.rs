//! Zones of Rust values.

use hosted::SYSTEM;

pub use kern::zone::{Fail, How, Wait, ZoneError};

/// A zone of `T`: values constructed once and handed from owner to owner as they are. zone(9).
///
/// ```
/// use kernmalloc::{How, zone};
///
/// struct Request {
///     lines: Vec<String>,
/// }
///
/// let requests = zone("request", || Some(Request { lines: Vec::with_capacity(64) })).unwrap();
/// let mut request = requests.alloc_reset(How::NOWAIT, |request| request.lines.clear()).unwrap();
/// request.lines.push("GET / HTTP/1.1".to_owned());
/// drop(request); // back to the zone, with the vector's memory
/// assert_eq!(requests.stats().in_use, 0);
/// ```
#[doc(alias = "uma_zone_t")]
pub type Zone<T> = kern::zone::Zone<'static, hosted::Linux, T>;

/// An owner's value of a [`Zone`]; dropped, it goes back.
pub type ZoneBox<'z, T> = kern::zone::ZoneBox<'z, hosted::Linux, T>;

/// Gives back to the system all memory that is free: what CPUs' caches, depots and slabs hold, of zones and of everything else. Returns whether
/// any went back. Values of zones that no owner has are dropped in it, so hold no lock that their `Drop` takes. It is done a little at a time in
/// the background of other calls, too; this is for a program that knows that it will be idle. malloc_trim(3).
///
/// ```
/// let idle = kernmalloc::zone("idle", || Some([0u8; 1000])).unwrap();
/// let values: Vec<_> = (0..100).map(|_| idle.alloc(kernmalloc::How::NOWAIT).unwrap()).collect();
/// drop(values);
/// assert!(idle.stats().slabs > 0);
/// kernmalloc::trim();
/// assert_eq!(idle.stats().slabs, 0);
/// ```
#[doc(alias = "malloc_trim")]
#[doc(alias = "uma_reclaim")]
pub fn trim() -> bool {
    SYSTEM.trim()
}

/// Makes a zone whose values `make` constructs, a slab of them at a time. `kernmalloc vmstat -z` shows it under `name` (cut at 31 bytes).
///
/// # Errors
/// As `kern::zone::Zone::new`; [`ZoneError::Memory`] also when the allocator cannot boot.
#[doc(alias = "uma_zcreate")]
pub fn zone<T: Send>(name: &str, make: fn() -> Option<T>) -> Result<Zone<T>, ZoneError> {
    if !hosted::boot() {
        return Err(ZoneError::Memory);
    }
    Zone::new(&SYSTEM, name, make)
}

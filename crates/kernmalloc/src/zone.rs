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

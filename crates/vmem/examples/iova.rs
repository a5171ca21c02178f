//! Bus addresses behind an IOMMU: pages of them from the bus, small buffers from an arena of the device.
//!
//! `cargo run -p kernmalloc-vmem --features std --example iova`

use kernmalloc_vmem::{Arena, Error, Fit, HeapTags, Request, Size, Std, Wait};

fn main() -> Result<(), Error> {
    print!("{}", told()?);
    Ok(())
}

/// What the program says.
pub(crate) fn told() -> Result<String, Error> {
    let mut out = String::new();
    let bus: Arena<Std> = Arena::new("iova", 0x1000, &HeapTags);
    // Not 0: a descriptor with that address means that there is no buffer.
    bus.add(0x1000, (1 << 32) - 0x1000, Wait::Sleep)?;
    let nic = Arena::<Std>::new("nic rings", 64, &HeapTags).with_import(&bus, 0x1_0000);
    nic.set_limit(Some(1 << 20));

    // A ring of descriptors below 16 MiB that mustn't cross 64 KiB: the bus itself is asked for the bounds.
    let low = Request { align: 0x4000, nocross: 0x1_0000, max: 0xff_ffff, fit: Fit::Best, ..Request::new(0x6000) };
    out += &format!("legacy ring at {:#x}\n", bus.xalloc(&low, Wait::NoSleep)?);
    let buffers: Vec<usize> = (0..3).map(|_| nic.alloc(1500, Fit::Instant, Wait::Sleep)).collect::<Result<_, _>>()?;
    out += &format!("buffers at {buffers:#x?}\n");
    nic.print(&mut out).expect("a string takes all");
    for addr in buffers {
        nic.free(addr, 1500)?;
    }
    out += &format!("in use on the bus after the buffers are free: {:#x}\n", bus.size(Size::Alloc));
    Ok(out)
}

//! Three sets of numbers that a kernel gives out: process ids, ports, and bus addresses for DMA.
//!
//! `cargo run -p kernmalloc-vmem --features std --example numbers`

use kernmalloc_vmem::{Arena, Error, Fit, HeapTags, Request, Size, Std, Wait};

fn main() -> Result<(), Error> {
    // Process ids: next fit, so that a number comes again as late as possible.
    let pids: Arena<Std> = Arena::new("pid", 1, &HeapTags);
    pids.add(1, 99_999, Wait::Sleep)?;
    let first = pids.alloc(1, Fit::Next, Wait::NoSleep)?;
    pids.free(first, 1)?;
    let second = pids.alloc(1, Fit::Next, Wait::NoSleep)?;
    println!("pid {first} has ended, the next is {second}");

    // Ports: the lowest free one, or one by name.
    let ports: Arena<Std> = Arena::new("tcp port", 1, &HeapTags);
    ports.add(1, 65_535, Wait::Sleep)?;
    let exactly = |port| Request { min: port, max: port, ..Request::new(1) };
    ports.xalloc(&exactly(49_152), Wait::NoSleep)?;
    println!("49152 again: {}", ports.xalloc(&exactly(49_152), Wait::NoSleep).unwrap_err());
    let ephemeral = Request { min: 49_152, fit: Fit::First, ..Request::new(1) };
    println!("the lowest free ephemeral port is {}", ports.xalloc(&ephemeral, Wait::NoSleep)?);
    println!("a wrong free: {}", ports.free(80, 1).unwrap_err());

    // Bus addresses behind an IOMMU: pages from the bus, small buffers from arenas of each device.
    let bus: Arena<Std> = Arena::new("iova", 0x1000, &HeapTags);
    bus.add(0, 1 << 32, Wait::Sleep)?;
    let nic = Arena::<Std>::new("nic rings", 64, &HeapTags).with_import(&bus, 0x1_0000);
    nic.set_limit(Some(1 << 20));
    // A ring of descriptors that mustn't cross 64 KiB, below 16 MiB: the bus itself is asked for the bounds.
    let low = Request { align: 0x4000, nocross: 0x1_0000, max: 0xff_ffff, fit: Fit::Best, ..Request::new(0x6000) };
    println!("legacy ring at {:#x}", bus.xalloc(&low, Wait::NoSleep)?);
    let buffers: Vec<usize> = (0..3).map(|_| nic.alloc(1500, Fit::Instant, Wait::Sleep)).collect::<Result<_, _>>()?;
    println!("buffers at {buffers:#x?}");
    let mut text = String::new();
    nic.print(&mut text).expect("a string takes all");
    bus.print(&mut text).expect("a string takes all");
    print!("{text}");
    for addr in buffers {
        nic.free(addr, 1500)?;
    }
    println!("in use on the bus after the buffers are free: {:#x}", bus.size(Size::Alloc));
    Ok(())
}

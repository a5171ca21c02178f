//! A child of fork(2), made while other threads allocate and register types, goes on with the types and their figures.

use std::sync::atomic::{AtomicBool, Ordering};

use kernmalloc::{Scope, malloc_define};

#[global_allocator]
static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;

malloc_define!(M_PARENT, "parent", "used before the fork");
malloc_define!(M_CHILD, "child", "used by children only");

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn alarm(seconds: u32) -> u32;
    fn _exit(status: i32) -> !;
}

/// In the child: 0, or which step was wrong. Nothing here may take a lock of the standard library's.
fn child(scope: Scope) -> i32 {
    if Scope::current() != scope || M_PARENT.stats().in_use != 1 {
        return 1;
    }
    let in_scope = vec![1u8; 100];
    if M_PARENT.stats().in_use != 2 {
        return 2;
    }
    let own = M_CHILD.scope(|| vec![2u8; 100]);
    if M_CHILD.stats().in_use != 1 || kernmalloc::find("child").is_none() {
        return 3;
    }
    drop((in_scope, own));
    if (M_PARENT.stats().in_use, M_CHILD.stats().in_use) == (1, 0) { 0 } else { 4 }
}

#[test]
fn a_forked_child_goes_on() {
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            // Bounded: a registration is for good.
            for n in 0..3000 {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                kernmalloc::register_type("of another thread").unwrap().scope(|| drop(vec![0u8; n]));
            }
        });
        let kept = M_PARENT.scope(|| vec![0u8; 100]);
        for _ in 0..50 {
            let status = M_PARENT.scope(|| {
                // SAFETY: the child calls nothing that another thread may have left locked, and ends without destructors; a
                // hang is ended by the signal.
                unsafe {
                    match fork() {
                        0 => {
                            alarm(20);
                            _exit(child(Scope::current()))
                        }
                        pid => {
                            let mut status = -1;
                            assert_eq!(waitpid(pid, &raw mut status, 0), pid);
                            status
                        }
                    }
                }
            });
            assert_eq!(status, 0, "in wait(2)'s form");
        }
        done.store(true, Ordering::Relaxed);
        // What children did is theirs.
        assert_eq!((M_PARENT.stats().in_use, M_CHILD.stats().requests), (1, 0));
        drop(kept);
    });
}

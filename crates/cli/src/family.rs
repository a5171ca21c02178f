//! The processes of one `run`: what each left, and who started whom.

use std::collections::HashMap;
use std::path::Path;

use memstat::{Object, Snapshot, is_alive, objects_in};

/// One image of one process: exec makes another under the same pid.
pub(crate) struct Member {
    pub(crate) snapshot: Snapshot,
    /// The live process, when it outlives the program.
    pub(crate) live: Option<u32>,
}

/// What a directory of objects holds, in the order of their start; with a line for each object that cannot be read. `only`: of this process.
pub(crate) fn read(dir: &Path, only: Option<u32>) -> (Vec<Member>, Vec<String>) {
    let mut members = Vec::new();
    let mut failures = Vec::new();
    let objects = match objects_in(dir) {
        Ok(objects) => objects,
        Err(e) => return (members, vec![e.to_string()]),
    };
    for (path, object) in objects {
        match object.and_then(|object| member(&object)) {
            Ok(member) if only.is_some_and(|pid| pid != member.snapshot.program.pid) => {}
            Ok(member) => members.push(member),
            Err(e) => failures.push(format!("{}: {e}", name_of(&path))),
        }
    }
    members.sort_by_key(|member| member.snapshot.program.start_realtime_ns);
    (members, failures)
}

/// `statistics of pid 123, image 0`.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.split_once('.') {
        Some((pid, generation)) => format!("statistics of pid {pid}, image {generation}"),
        None => name,
    }
}

fn member(object: &Object) -> memstat::Result<Member> {
    let snapshot = object.snapshot()?;
    let pid = snapshot.program.pid;
    // A process that is still there has live zone figures; its earlier images (before exec) have not.
    if !snapshot.program.exited
        && is_alive(pid)
        && let Ok(object) = Object::open_pid(pid)
        && let Ok(live) = object.snapshot()
        && live.program.generation == snapshot.program.generation
        && live.program.start_realtime_ns == snapshot.program.start_realtime_ns
    {
        return Ok(Member { snapshot: live, live: Some(pid) });
    }
    Ok(Member { snapshot, live: None })
}

/// The images of each process, by pid in the order of their first start.
fn processes(members: &[Member]) -> Vec<(u32, Vec<&Member>)> {
    let mut order: Vec<(u32, Vec<&Member>)> = Vec::new();
    let mut at: HashMap<u32, usize> = HashMap::new();
    for member in members {
        let program = &member.snapshot.program;
        // The same pid at generation 0 again is another process.
        match at.get(&program.pid).filter(|_| program.generation > 0) {
            Some(&index) => order[index].1.push(member),
            None => {
                at.insert(program.pid, order.len());
                order.push((program.pid, vec![member]));
            }
        }
    }
    order
}

/// The family as a tree, one process per line, images joined by `=>`.
pub(crate) fn tree(members: &[Member]) -> String {
    let processes = processes(members);
    let known: HashMap<u32, usize> = processes.iter().enumerate().map(|(index, (pid, _))| (*pid, index)).collect();
    let parent = |index: usize| {
        let (pid, images) = &processes[index];
        let parent = images[0].snapshot.program.parent_pid;
        // A parent is known, another, and older: so there is no circle.
        known.get(&parent).copied().filter(|&at| at < index && parent != *pid)
    };
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); processes.len()];
    let mut roots = Vec::new();
    for index in 0..processes.len() {
        match parent(index) {
            Some(parent) => children[parent].push(index),
            None => roots.push(index),
        }
    }
    let mut out = String::new();
    // The lines to come, last first: a family may be deeper than a stack.
    let mut pending: Vec<(usize, String, &str)> = roots.iter().rev().map(|&root| (root, String::new(), "")).collect();
    while let Some((index, indent, branch)) = pending.pop() {
        let (pid, images) = &processes[index];
        let names: Vec<&str> = images.iter().map(|image| image.snapshot.program.name()).collect();
        let running = if images.iter().any(|image| image.live.is_some()) { " (running)" } else { "" };
        out.push_str(&format!("{indent}{branch}{pid} {}{running}\n", names.join(" => ")));
        let below = match branch {
            "" => indent,
            "|- " => indent + "|  ",
            _ => indent + "   ",
        };
        for (nth, &child) in children[index].iter().rev().enumerate() {
            pending.push((child, below.clone(), if nth == 0 { "`- " } else { "|- " }));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use memstat::builder::Builder;

    use super::*;

    #[test]
    fn a_family_is_drawn_with_its_images() {
        let member = |pid, parent, generation, exe: &str, start| {
            let mut b = Builder::new(1);
            b.identity(pid, parent, generation, exe);
            let mut snapshot = Object::from_bytes(b.bytes()).unwrap().snapshot().unwrap();
            snapshot.program.start_realtime_ns = start;
            Member { snapshot, live: (pid == 103).then_some(pid) }
        };
        let members = [
            member(100, 1, 0, "/bin/sh", 1),
            member(101, 100, 0, "/bin/sh", 2),
            member(101, 100, 1, "/usr/bin/git", 3),
            member(102, 101, 0, "/usr/bin/git", 4),
            member(103, 100, 0, "/usr/bin/sleep", 5),
            member(104, 103, 0, "/usr/bin/true", 6),
        ];
        let expected = "100 sh\n|- 101 sh => git\n|  `- 102 git\n`- 103 sleep (running)\n   `- 104 true\n";
        assert_eq!(tree(&members), expected);
    }
}

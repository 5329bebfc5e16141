//! Which fragments share a segment.

/// So many segments of one level become one of the next. More of them would be probed for a look-up if this were larger, and what is
/// known of each fragment would be written more often if it were smaller.
pub const FAN_OUT: usize = 4;

/// What a segment is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A segment that is there, by its number.
    Segment(usize),
    /// A fragment that is in none yet, by its number.
    Fragment(usize),
}

/// A segment as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// 0 for a segment of one fragment's own.
    pub level: u32,
    /// What it is made of, in the order of row ids.
    pub parts: Vec<Part>,
}

/// The segments that take the place of `parts`, which come with their levels in the order of row ids. A result with one
/// part that is a segment is that segment.
///
/// Levels do not ascend from old to new, and no level has [`FAN_OUT`] segments or more. Where they would ascend, because an old
/// segment was lost and its fragments are new to the index, the lower ones before a higher one become one of its level.
pub fn fold(parts: impl IntoIterator<Item = Node>) -> Vec<Node> {
    let mut stack: Vec<Node> = Vec::new();
    for node in parts {
        let lower = stack.iter().rev().take_while(|n| n.level < node.level).count();
        if lower > 0 {
            merge(&mut stack, lower, node.level);
            settle(&mut stack);
        }
        stack.push(node);
        settle(&mut stack);
    }
    stack
}

fn settle(stack: &mut Vec<Node>) {
    while let Some(level) = stack.last().map(|n| n.level) {
        let same = stack.iter().rev().take_while(|n| n.level == level).count();
        if same < FAN_OUT {
            return;
        }
        merge(stack, same, level + 1);
    }
}

fn merge(stack: &mut Vec<Node>, last: usize, level: u32) {
    let parts = stack.drain(stack.len() - last..).flat_map(|n| n.parts).collect();
    stack.push(Node { level, parts });
}

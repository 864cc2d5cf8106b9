//! The prefix tree, with a memory budget.

use std::{collections::HashMap, iter::successors};

use super::{
    disk::Folder,
    node::{End, Node, Step},
};
use crate::{
    Result,
    engine::{Batch, text::Text},
    forward::Phase,
    model::Config,
    state::Recurrent,
};

/// Prefix states of one cache type, by owner. One owner's states are never used for another, nor revealed by response
/// times, except that states are evicted when others need the room.
pub struct Prefixes {
    /// Root nodes by owner key, see [`Prefixes::owner`].
    pub(super) roots: HashMap<String, usize>,
    pub(super) nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    bytes: usize,
    limit: usize,
    /// Counter of uses.
    pub(super) now: u64,
    /// Number of leading tokens whose state does not depend on the phase.
    phase_independent: usize,
    pub(super) folder: Option<Folder>,
}

/// The known prefix of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The node whose end state can be used.
    node: Option<usize>,
    /// The number of tokens up to there.
    pub tokens: usize,
    /// Number of tokens that the prompt shares with any known prefix, whether or not a state is stored there.
    pub shared: usize,
}

impl Prefixes {
    /// Returns an empty tree with a budget of `limit` bytes. `phase_independent`: number of leading tokens whose state does not
    /// depend on the phase.
    pub fn new(limit: usize, phase_independent: usize) -> Self {
        let (roots, nodes, free, folder) = (HashMap::new(), Vec::new(), Vec::new(), None);
        Self { roots, nodes, free, bytes: 0, limit, now: 0, phase_independent, folder }
    }

    /// Returns the key of an owner, a hash that does not reveal the name.
    pub(super) fn owner(name: &str) -> String {
        blake3::Hasher::new_derive_key("hymba prefix states: owner")
            .update(name.as_bytes())
            .finalize()
            .to_hex()
            .to_string()
    }

    /// Returns the size of all states in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the budget in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the number of states.
    pub fn states(&self) -> usize {
        self.nodes.iter().flatten().filter(|node| node.end.is_some()).count()
    }

    /// Returns steps with the phase of the leading ones, on which their state does not depend, set to prefill.
    pub(super) fn normalized(&self, steps: &[Step]) -> Vec<Step> {
        let phase = |i: usize, phase| if i < self.phase_independent { Phase::Prefill } else { phase };
        steps.iter().enumerate().map(|(i, &(id, was))| (id, phase(i, was))).collect()
    }

    /// Finds the longest known prefix of `prompt`. The full prompt counts only if the logits after it are known.
    pub fn find(&self, owner: &str, prompt: &[u32]) -> Found {
        let mut best = Found::default();
        let root = self.roots.get(&Self::owner(owner)).copied();
        let mut open: Vec<usize> = root.into_iter().collect();
        while let Some(at) = open.pop() {
            let Some(node) = &self.nodes[at] else { continue };
            let rest = &prompt[node.start.min(prompt.len())..];
            let common = node.steps.iter().zip(rest).take_while(|(step, id)| step.0 == **id).count();
            best.shared = best.shared.max(node.start + common);
            if common < node.steps.len() {
                continue;
            }
            let knows_more = |end: &End| node.stop() < prompt.len() || !end.logits.is_empty();
            if node.stop() > best.tokens && node.end.as_ref().is_some_and(knows_more) {
                (best.node, best.tokens) = (Some(at), node.stop());
            }
            // Prefilled nodes before decoded ones: the last one pushed is visited first.
            open.extend(node.children.iter().filter(|&&child| self.begins(child, Phase::Decode)));
            open.extend(node.children.iter().filter(|&&child| self.begins(child, Phase::Prefill)));
        }
        best
    }

    fn begins(&self, node: usize, phase: Phase) -> bool {
        self.nodes[node].as_ref().and_then(|node| node.steps.first()).is_some_and(|step| step.1 == phase)
    }

    /// Returns the nodes from `node` up to the root.
    fn to_root(&self, node: usize) -> impl Iterator<Item = usize> {
        successors(Some(node), |&node| self.nodes[node].as_ref()?.parent)
    }

    /// Restores a found prefix in the empty sequence `text`. Returns its steps, and the logits after it if known.
    pub fn restore(&mut self, batch: &mut Batch<'_>, text: &mut Text, found: Found) -> (Vec<Step>, Vec<f32>) {
        let Some(last) = found.node else { return Default::default() };
        let config = batch.model().config();
        let mut path: Vec<usize> = self.to_root(last).collect();
        path.reverse();
        let mut steps = Vec::with_capacity(found.tokens);
        for &node in &path {
            let Some(node) = &self.nodes[node] else { continue };
            steps.extend(&node.steps);
            if let Some(rows) = &node.rows {
                text.state.put_rows(&mut batch.device, config, rows);
            }
        }
        self.now += 1;
        let now = self.now;
        let Some(end) = self.nodes[last].as_mut().and_then(|node| node.end.as_mut()) else { return Default::default() };
        end.used = now;
        text.state.put_recurrent(&mut batch.device, config, &end.recurrent, found.tokens);
        (steps, end.logits.clone())
    }

    /// Stores the state of `text` after `steps`, with the `logits` if there are any.
    pub fn insert(
        &mut self,
        batch: &mut Batch<'_>,
        text: &Text,
        owner: &str,
        steps: &[Step],
        logits: &[f32],
    ) -> Result<()> {
        let config = batch.model().config();
        if steps.is_empty() || Recurrent::bytes(config) > self.limit {
            return Ok(());
        }
        let at = self.node_for(batch, text, owner, &self.normalized(steps))?;
        self.complete(batch, text, at, steps.len())?;
        self.now += 1;
        let now = self.now;
        let recurrent = match self.nodes[at].as_ref().is_some_and(|node| node.end.is_some()) {
            true => None,
            false => Some(text.state.recurrent(&mut batch.device, config)?),
        };
        self.change(config, at, |node| match (&mut node.end, recurrent) {
            (Some(end), _) => {
                end.used = now;
                if end.logits.is_empty() && !logits.is_empty() {
                    (end.logits, node.is_saved) = (logits.to_vec(), false);
                }
            }
            (end, Some(recurrent)) => {
                *end = Some(End { recurrent, logits: logits.to_vec(), used: now });
                node.is_saved = false;
            }
            _ => {}
        });
        self.shrink(config);
        Ok(())
    }

    /// Returns the node that ends after `steps`, creating it if necessary.
    fn node_for(&mut self, batch: &mut Batch<'_>, text: &Text, owner: &str, steps: &[Step]) -> Result<usize> {
        let config = batch.model().config();
        let owner = Self::owner(owner);
        let mut at = match self.roots.get(&owner) {
            Some(&root) => root,
            None => {
                let root = self.add(config, Node::root());
                self.roots.insert(owner, root);
                root
            }
        };
        let mut done = 0;
        while done < steps.len() {
            let rest = &steps[done..];
            let children = self.nodes[at].as_ref().map(|node| node.children.clone()).unwrap_or_default();
            let common = |child: &usize| {
                let steps = self.nodes[*child].as_ref().map_or(&[][..], |node| &node.steps);
                steps.iter().zip(rest).take_while(|(a, b)| a == b).count()
            };
            let next = children.iter().map(|child| (*child, common(child))).find(|(_, common)| *common > 0);
            let Some((child, common)) = next else {
                let rows = text.state.rows(&mut batch.device, config, done..steps.len())?;
                let node =
                    Node { parent: Some(at), start: done, steps: rest.to_vec(), rows: Some(rows), ..Node::root() };
                return Ok(self.add(config, Node { is_saved: false, ..node }));
            };
            at = self.split(batch, child, common)?;
            done += common;
        }
        Ok(at)
    }

    /// Returns the node for the first `count` steps of `node`, splitting it if it has more.
    fn split(&mut self, batch: &mut Batch<'_>, node: usize, count: usize) -> Result<usize> {
        let config = batch.model().config();
        let Some(lower) = &mut self.nodes[node] else { return Ok(node) };
        if lower.steps.len() == count {
            return Ok(node);
        }
        let before = lower.bytes(config);
        let upper = lower.split_off_first(&mut batch.device, config, count)?;
        self.bytes = self.bytes - before + lower.bytes(config);
        let parent = upper.parent;
        let upper = self.add(config, upper);
        if let Some(parent) = parent.and_then(|parent| self.nodes[parent].as_mut()) {
            parent.children.retain(|&child| child != node);
        }
        if let Some(lower) = &mut self.nodes[node] {
            lower.parent = Some(upper);
        }
        if let Some(upper) = &mut self.nodes[upper] {
            upper.children.push(node);
        }
        Ok(upper)
    }

    /// Completes the windowed layers' rows of the nodes up to `last`, from a sequence of `tokens` tokens. Rows are
    /// missing where a longer sequence was split, since its window had moved on.
    fn complete(&mut self, batch: &mut Batch<'_>, text: &Text, last: usize, tokens: usize) -> Result<()> {
        let config = batch.model().config();
        let path: Vec<usize> = self.to_root(last).collect();
        for at in path {
            let Some(rows) = self.nodes[at].as_ref().and_then(|node| node.rows.as_ref()) else { continue };
            if rows.lack(config, tokens) {
                let more = text.state.rows(&mut batch.device, config, rows.tokens())?;
                self.change(config, at, |node| {
                    if let Some(rows) = &mut node.rows {
                        rows.complete_with(more);
                    }
                    node.is_saved = false;
                });
            }
        }
        Ok(())
    }

    /// Adds a node below its parent.
    pub(super) fn add(&mut self, config: &Config, node: Node) -> usize {
        self.bytes += node.bytes(config);
        let parent = node.parent;
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at] = Some(node);
                at
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        };
        if let Some(parent) = parent.and_then(|parent| self.nodes[parent].as_mut()) {
            parent.children.push(at);
        }
        at
    }

    /// Modifies a node and updates the total size.
    fn change(&mut self, config: &Config, at: usize, change: impl FnOnce(&mut Node)) {
        if let Some(node) = &mut self.nodes[at] {
            let before = node.bytes(config);
            change(node);
            self.bytes = self.bytes - before + node.bytes(config);
        }
    }

    /// Evicts the least recently used states until the others fit.
    pub(super) fn shrink(&mut self, config: &Config) {
        while self.bytes > self.limit {
            let states = self.nodes.iter().enumerate();
            let used = states.filter_map(|(at, node)| Some((node.as_ref()?.end.as_ref()?.used, at)));
            let Some((_, oldest)) = used.min() else { return };
            self.change(config, oldest, |node| (node.end, node.is_saved) = (None, false));
            self.prune(config, oldest);
        }
    }

    /// Removes `node` if no other node needs it, then its ancestors likewise.
    pub(super) fn prune(&mut self, config: &Config, node: usize) {
        let mut next = Some(node);
        while let Some(at) = next {
            let Some(node) = self.nodes[at].as_ref().filter(|node| node.children.is_empty() && node.end.is_none())
            else {
                return;
            };
            self.bytes -= node.bytes(config);
            if let Some(folder) = &self.folder {
                let (owner, steps) = self.path(at);
                folder.remove(&owner, &steps);
            }
            next = self.nodes[at].as_ref().and_then(|node| node.parent);
            match next.and_then(|parent| self.nodes[parent].as_mut()) {
                Some(parent) => parent.children.retain(|&child| child != at),
                None => self.roots.retain(|_, &mut root| root != at),
            }
            self.nodes[at] = None;
            self.free.push(at);
        }
    }

    /// Returns the owner key and all steps up to the end of `node`.
    pub(super) fn path(&self, node: usize) -> (String, Vec<Step>) {
        let path: Vec<usize> = self.to_root(node).collect();
        let root = path.last().copied();
        let owner = self.roots.iter().find(|(_, at)| Some(**at) == root).map(|(owner, _)| owner.clone());
        let steps = path.iter().rev().filter_map(|&at| self.nodes[at].as_ref()).flat_map(|node| node.steps.clone());
        (owner.unwrap_or_default(), steps.collect())
    }
}

//! Storage of the prefix tree in a folder.

use std::{collections::HashMap, fs};

use super::{
    disk::{File, Folder, Header, VERSION},
    node::{End, Node, decoded},
    tree::Prefixes,
};
use crate::{
    Error, Result,
    engine::Batch,
    model::Config,
    state::{Payload, Recurrent, Rows, write_session},
};

impl Prefixes {
    /// Loads the states in the folder, as many as fit, and stores new states there from now on.
    pub fn keep_in(&mut self, folder: Folder, batch: &mut Batch<'_>) -> Result<()> {
        let config = batch.model().config();
        let mut known = HashMap::new();
        let files = folder.files(batch)?;
        let mut ages: Vec<_> = files.iter().map(|file| file.at).collect();
        ages.sort_unstable();
        for File { path, name, header, rows, payload, at } in files {
            let parent = match known.get(&header.parent) {
                Some(&parent) => Some(parent),
                None if header.parent.is_empty() && header.start == 0 => Some(self.root(config, &header.owner)),
                None => None,
            };
            let node = parent.zip(header.steps()).filter(|(parent, steps)| {
                let before = self.path(*parent);
                let all = [&before.1[..], steps].concat();
                before.1.len() == header.start && folder.name(&header.owner, &all) == name && before.0 == header.owner
            });
            let Some((parent, steps)) = node else {
                let _ = fs::remove_file(&path); // its parent is missing
                continue;
            };
            let used = ages.partition_point(|&other| other < at) as u64;
            let Ok(node) = read_node(batch, self, &folder, &header, rows, &payload, used) else {
                let _ = fs::remove_file(&path);
                continue;
            };
            let node = self.add(config, Node { parent: Some(parent), steps, ..node });
            known.insert(name, node);
        }
        self.now = ages.len() as u64;
        self.folder = Some(folder);
        for node in 0..self.nodes.len() {
            self.prune(config, node); // without a state, and without children that have one
        }
        self.shrink(config);
        Ok(())
    }

    /// Writes one state that is not in the folder yet. Returns whether there was one.
    pub fn save_one(&mut self, batch: &mut Batch<'_>) -> Result<bool> {
        let Some(folder) = &self.folder else { return Ok(false) };
        let unsaved = self.nodes.iter().enumerate().filter_map(|(at, node)| Some((at, node.as_ref()?)));
        let unsaved = unsaved.filter(|(_, node)| !node.is_saved && node.rows.is_some());
        let Some((at, node)) = unsaved.min_by_key(|(_, node)| node.start) else { return Ok(false) };
        let Some(rows) = &node.rows else { return Ok(false) };
        let (owner, steps) = self.path(at);
        let config = batch.model().config();
        let header = Header {
            prefix_version: VERSION,
            model: folder.model.clone(),
            cache: folder.cache.name().into(),
            parent: folder.name(&owner, &steps[..node.start]),
            start: node.start,
            ids: node.steps.iter().map(|step| step.0).collect(),
            decoded: decoded(&node.steps).into_iter().map(|range| (range.start, range.len())).collect(),
            firsts: rows.firsts(),
            has_state: node.end.is_some(),
            logits: node.end.as_ref().map_or(0, |end| end.logits.len()),
            owner: owner.clone(),
        };
        let mut payload = Vec::new();
        rows.write(&mut batch.device, config, &mut payload);
        if let Some(end) = &node.end {
            end.recurrent.write(&mut batch.device, config, &mut payload);
            payload.extend(end.logits.iter().flat_map(|logit| logit.to_le_bytes()));
        }
        write_session(&folder.file(&folder.name(&owner, &steps)), &header, |write| write(&payload))?;
        if let Some(node) = &mut self.nodes[at] {
            node.is_saved = true;
        }
        Ok(true)
    }

    /// Stops writing to the folder.
    pub fn forget_folder(&mut self) {
        self.folder = None;
    }

    fn root(&mut self, config: &Config, owner: &str) -> usize {
        if let Some(&root) = self.roots.get(owner) {
            return root;
        }
        let root = self.add(config, Node::root());
        self.roots.insert(owner.into(), root);
        root
    }
}

/// Reads a node from a file; the caller sets its parent and steps.
fn read_node(
    batch: &mut Batch<'_>,
    tree: &Prefixes,
    folder: &Folder,
    header: &Header,
    rows: usize,
    payload: &Payload,
    used: u64,
) -> Result<Node> {
    let config = batch.model().config();
    let tokens = header.start..header.start + header.ids.len();
    let state = if header.has_state { Recurrent::bytes(config) } else { 0 };
    let logits = size_of::<f32>() * header.logits;
    if tree.bytes() + rows + state + logits > tree.limit() {
        return Err(Error::Request("there is no room for it".into()));
    }
    let bytes = payload.read(0, rows)?;
    let rows_read = Rows::read(&mut batch.device, config, folder.cache, tokens, &header.firsts, &bytes)?;
    let end = match header.has_state {
        true => {
            let recurrent = Recurrent::read(&mut batch.device, config, &payload.read(rows, state)?)?;
            let logits = payload.read(rows + state, logits)?;
            let logits = logits.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            Some(End { recurrent, logits, used })
        }
        false => None,
    };
    Ok(Node { start: header.start, rows: Some(rows_read), end, ..Node::root() })
}

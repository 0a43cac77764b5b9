//! What caches keep in the same way.

use super::cache::{CacheError, View};
use super::layout::LayerKv;
use super::recurrent::Recurrent;
use std::collections::BTreeMap;

/// The views that layers above read again in the same pass, and the states of recurrent layers.
#[derive(Clone, Default)]
pub(super) struct Shared {
    views: BTreeMap<usize, View>,
    states: BTreeMap<usize, Option<Recurrent>>,
}

impl Shared {
    /// Keeps the view of a layer if layers above read it, and hands it on.
    pub fn share(&mut self, layer: usize, kv: &LayerKv, view: View) -> View {
        if kv.shared {
            self.views.insert(layer, view.clone());
        }
        view
    }

    /// The view that `owner` was given in this pass.
    pub fn view(&self, owner: usize) -> Result<View, CacheError> {
        self.views.get(&owner).cloned().ok_or(CacheError::NoOwner { owner })
    }

    pub fn forget_views(&mut self) {
        self.views.clear();
    }

    /// The state of a recurrent layer.
    pub fn state(&mut self, layer: usize) -> &mut Option<Recurrent> {
        self.states.entry(layer).or_default()
    }

    /// The first layer that has a state.
    pub fn layer_with_state(&self) -> Option<usize> {
        self.states.iter().find(|(_, state)| state.is_some()).map(|(&layer, _)| layer)
    }

    pub fn forget_states(&mut self) {
        self.states.clear();
    }
}

//! The heat map: which site does how much, layer by layer.

use super::findings::SiteReading;
use crate::kv::layout::KvSide;
use std::collections::BTreeSet;

/// Sites in the order in which people read them. A row is a layer, a column is K or V, or one of their heads.
pub struct HeatMap<'a> {
    pub columns: Vec<String>,
    pub rows: Vec<(usize, Vec<Option<&'a SiteReading>>)>,
}

impl<'a> HeatMap<'a> {
    pub fn of(sites: &'a [SiteReading]) -> Self {
        let layers: BTreeSet<usize> = sites.iter().map(|reading| reading.site.layer).collect();
        let columns: BTreeSet<(KvSide, Option<usize>)> =
            sites.iter().map(|reading| (reading.site.side, reading.site.head)).collect();
        let at = |layer: usize, (side, head): (KvSide, Option<usize>)| {
            sites.iter().find(|reading| {
                let site = reading.site;
                (site.layer, site.side, site.head) == (layer, side, head)
            })
        };
        let row = |layer: usize| (layer, columns.iter().map(|column| at(layer, *column)).collect());
        let name = |(side, head): &(KvSide, Option<usize>)| match head {
            None => side.to_string(),
            Some(head) => format!("{side} head {head}"),
        };
        HeatMap {
            rows: layers.into_iter().map(row).collect(),
            columns: columns.iter().map(name).collect(),
        }
    }
}

/// How hot a site is, from 0 to 4, by its share of the sum.
pub fn heat(share: f64) -> usize {
    [0.01, 0.05, 0.1, 0.2].iter().filter(|least| share >= **least).count()
}

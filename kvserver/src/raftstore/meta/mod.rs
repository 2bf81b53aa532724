//! What a store knows of its regions: keys and values on disk, the map of ranges, the views for readers.

pub mod keys;
pub mod region_map;
pub mod region_view;
pub mod values;

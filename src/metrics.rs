//! Counters, gauges and histograms, as Prometheus reads them.

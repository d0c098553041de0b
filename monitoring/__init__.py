"""What watches a running pgmoe: Prometheus' scrape configuration and the Grafana dashboard."""

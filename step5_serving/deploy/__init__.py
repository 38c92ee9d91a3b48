"""What the service needs past one terminal: alerts, dashboard, containers, Kubernetes, Ray Serve. See README.md."""

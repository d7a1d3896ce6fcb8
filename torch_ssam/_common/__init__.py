"""What measures and studies share: progress, optional packages, worker processes, HTML pages, images."""

"""What people look at: camera paths, figures, video."""

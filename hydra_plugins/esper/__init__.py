"""What Hydra finds of Esper by itself: it takes launchers from nowhere but `hydra_plugins`."""

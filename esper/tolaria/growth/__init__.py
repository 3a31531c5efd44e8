"""Growing during a training: when Tamiyo is asked, what lives at the sites, judging, incubation, forks."""

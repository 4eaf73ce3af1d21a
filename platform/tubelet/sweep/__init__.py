"""Searches over recipe keys with Ray Tune: every trial an elastic run of its own, all under one MLflow run.

    recipe      the sweep file              space     what it searches
    journal     the one record of a sweep   search    what to try next          rules    when to stop a trial
    trials      its trials' recipes         trial     one trial, in its process
    record      begin, go on, or refuse     driver    the sweep from its start to its end
    results     what it leaves for people   page, picture       all trials as HTML and PNG
    grafting    a population's trial takes over another's checkpoint

Ray Tune schedules and Ray Train trains; neither is trusted to remember (ADR 16). What a sweep knows is its journal,
from which searcher and scheduler are made anew at every start.
"""

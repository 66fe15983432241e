"""One qube: all that can be seen and changed of it, one tab for each kind of thing.

::

    #/qubes/NAME                 settings      forms made of what admin.casemate.property.Describe says
    #/qubes/NAME/features        features      features, services, tags, notes
    #/qubes/NAME/volumes         volumes       sizes, older states, revert, resize
    #/qubes/NAME/devices         devices       what can be attached, what is assigned
    #/qubes/NAME/firewall        firewall      rules, and which of them decides about a place
    #/qubes/NAME/programs        programs      entries of its menus, started by a click
    #/qubes/NAME/log             log           what its link and the daemon wrote about it
    #/qubes/NAME/console         console       its serial console, in a terminal

    POST /qubes/NAME/KIND/…      the change; the daemon checks it, and its refusal is the answer

Each module has ``routes``: what is shown and what changes it. ``head`` is what all tabs have in common, ``pages`` lists
them. ``lifecycle`` creates, clones, renames and removes, and tells before what that affects.

A tab is rendered as a whole, and fetched again when something that it follows has changed. The browser keeps what a
person is typing (``static/refresh.js``). No module knows a property, a feature or a class of devices by its name: what
the daemon declares appears by itself.
"""

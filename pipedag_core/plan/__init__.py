"""The compiled flow: graph, selection, plan and its JSON, pictures. Pure: no file, database or library is touched."""

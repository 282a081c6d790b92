"""Who is measured: one file each, all with the methods of `subject.Subject`."""

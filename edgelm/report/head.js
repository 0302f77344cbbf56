"use strict";
// Before anything is drawn: with a script, long tables begin short.
document.documentElement.classList.add("js");

# Makes our comments doxygen's: // before a declaration, or behind it. The block at the head of a file is about the file.
function code(text,   done) {  # `name` as code
  done = ""
  while (match(text, /`[^`]+`/)) {
    done = done substr(text, 1, RSTART - 1) "<tt>" substr(text, RSTART + 1, RLENGTH - 2) "</tt>"
    text = substr(text, RSTART + RLENGTH)
  }
  return done text
}
!body && /^#pragma once/ { body = 1 }
!body { print ""; next }
/^ *\/\/ / { sub(/\/\/ /, "/// "); print code($0); next }
/;  +\/\/ / { sub(/\/\/ /, "///< "); print code($0); next }
{ print }

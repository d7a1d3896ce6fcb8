// Perturbation: one pass, as an object that ends exactly once. See scope.h.
#include "noise/scope.h"

#include <torch_ssam/perturbation.h>

#include <exception>
#include <utility>

namespace torch_ssam {

Perturbation::Perturbation(std::shared_ptr<detail::Drive> drive, bool advances)
    : drive_(std::move(drive)), advances_(advances), exceptions_(std::uncaught_exceptions()) {
  drive_->inside_pass = true;
}

Perturbation::Perturbation(Perturbation&& other) noexcept
    : drive_(std::move(other.drive_)), advances_(other.advances_), exceptions_(other.exceptions_) {}

Perturbation& Perturbation::operator=(Perturbation&& other) noexcept {
  if (this != &other) {
    restore_in_destructor();
    drive_ = std::move(other.drive_);
    advances_ = other.advances_;
    exceptions_ = other.exceptions_;
  }
  return *this;
}

Perturbation::~Perturbation() { restore_in_destructor(); }

void Perturbation::restore() {
  if (!drive_) return;
  const std::shared_ptr<detail::Drive> drive = std::move(drive_);
  const std::function<void()> completed = std::exchange(drive->completed, nullptr);
  const auto end = [&] {
    drive->inside_pass = false;
    if (advances_) drive->noise.generator.advance();
  };
  std::string changed;
  try {
    changed = drive->noise.restore();
  } catch (...) {  // eval(), or the next pass, tries again
    end();
    throw;
  }
  end();
  if (!changed.empty()) detail::throw_changed(changed);
  if (completed && std::uncaught_exceptions() <= exceptions_) completed();
}

void Perturbation::restore_in_destructor() noexcept {
  const std::shared_ptr<detail::Drive> drive = drive_;
  if (!drive) return;
  const bool unwinding = std::uncaught_exceptions() > exceptions_;
  try {
    restore();
  } catch (const c10::Error& error) {
    // An exception on its way matters more; otherwise the next step() or perturb() reports this one.
    if (!unwinding) drive->changed = error.what_without_backtrace();
    detail::warn_quietly(error.what_without_backtrace());
  } catch (const std::exception& error) {
    detail::warn_quietly(std::string("torch_ssam: the clean weights could not be put back (") + error.what() +
                         "); call eval() to try again.");
  }
}

}  // namespace torch_ssam

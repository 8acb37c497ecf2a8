# mail.tf: the same as mail.yaml, for Terraform
#
# Deploy, then confirm the subscription in the mail that SNS sends:
#   tattle recipe mail.tf >mail.tf
#   terraform init && terraform apply -var endpoint=security@example.com
#
# Parsed and compared with mail.yaml, but not applied.

variable "event_bus" {
  description = "Name of the event bus that tattle sends to"
  type        = string
  default     = "default"
}

variable "protocol" {
  description = "https gets the event as it is, email and sms a short text"
  type        = string
  default     = "email"
}

variable "endpoint" {
  description = "A mail address, a telephone number or a URL, as the protocol has it"
  type        = string
}

locals {
  logins = {
    source        = ["com.unbounce.tattle"]
    "detail-type" = ["SSH connection event detected"]
    detail        = { session = ["opened"] }
  }
}

resource "aws_sns_topic" "logins" {
  name         = "ssh-logins"
  display_name = "SSH logins"
}

resource "aws_sns_topic_subscription" "logins" {
  topic_arn = aws_sns_topic.logins.arn
  protocol  = var.protocol
  endpoint  = var.endpoint
}

resource "aws_sns_topic_policy" "logins" {
  arn = aws_sns_topic.logins.arn
  # No Condition: EventBridge does not support one in a topic's policy.
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "events.amazonaws.com" }
      Action    = "sns:Publish"
      Resource  = aws_sns_topic.logins.arn
    }]
  })
}

resource "aws_sqs_queue" "undelivered" {
  name                      = "ssh-logins-undelivered"
  message_retention_seconds = 1209600 # 14 days, the most that SQS keeps
  sqs_managed_sse_enabled   = true
}

resource "aws_sqs_queue_policy" "undelivered" {
  queue_url = aws_sqs_queue.undelivered.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "events.amazonaws.com" }
      Action    = "sqs:SendMessage"
      Resource  = aws_sqs_queue.undelivered.arn
      Condition = { ArnEquals = { "aws:SourceArn" = aws_cloudwatch_event_rule.logins.arn } }
    }]
  })
}

resource "aws_cloudwatch_event_rule" "logins" {
  name           = "ssh-logins"
  description    = "Every SSH login that tattle reports"
  event_bus_name = var.event_bus
  event_pattern  = jsonencode(local.logins)
}

resource "aws_cloudwatch_event_target" "topic" {
  rule           = aws_cloudwatch_event_rule.logins.name
  event_bus_name = var.event_bus
  arn            = aws_sns_topic.logins.arn

  dead_letter_config {
    arn = aws_sqs_queue.undelivered.arn
  }

  dynamic "input_transformer" {
    for_each = var.protocol == "https" ? [] : [1]
    content {
      input_paths = {
        user     = "$.detail.username"
        host     = "$.detail.remote_host"
        instance = "$.resources[0]"
        at       = "$.time"
      }
      # Not a sentence: EventBridge does not escape what it puts inside quotes, so that a quote in a user's name
      # would break the message. A value that stands alone is always right.
      input_template = "{\"SSH login\": <user>, \"from\": <host>, \"on\": <instance>, \"at\": <at>}"
    }
  }
}

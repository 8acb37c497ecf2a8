# tattle.tf: Terraform for the CloudFormation templates among these recipes, each a stack of its own
#
# Put it into a directory with the templates that you want:
#   for name in tattle.tf iam-role.yaml mail.yaml logs.yaml; do tattle recipe $name >$name; done
#   terraform init && terraform apply
# What you want of these, with its parameters, goes into terraform.tfvars:
#   stacks = {
#     iam-role         = {}
#     ssm              = { TagValue = "canary", Url = "https://example.com/tattle", Sha256 = "CHECKSUM" }
#     mail             = { Protocol = "email", Endpoint = "security@example.com" }
#     logs             = { Days = 365 }
#     dashboard        = { LogGroup = "/aws/events/tattle-logs" }
#     instance-connect = { LogGroup = "/aws/events/tattle-logs" }
#     archive          = { Days = 2557 }
#     chat             = { SlackWorkspace = "T0123ABCD", SlackChannel = "C0123ABCD" }
#     webhook          = { Service = "Slack", Url = "https://hooks.slack.com/services/…" }
#     lambda           = { WebhookUrl = "https://hooks.slack.com/services/…" }
#     silence          = { Topic = "arn:aws:sns:us-east-1:012345678901:tattle-mail-Topic-0123456789AB" }
#     central-bus      = { Organization = "o-a1b2c3d4e5" }
#   }
# It is a module, too, whose output instance_profile is for aws_instance and aws_launch_template. What the central bus
# is for goes into the bus's account, and is applied after it, with EventBus = "ssh-logins".
#
# A secret, such as Url, is in Terraform's state. CloudFormation does not give it back, so that each plan shows it as a
# change: leave that be, ignore_changes would write **** (hashicorp/terraform-provider-aws#29405).
#
# Not tested: Terraform's provider for AWS. The parameters are compared with the templates'.

variable "stacks" {
  description = "The templates to deploy, by name without .yaml, and their parameters"
  type        = map(map(string))
}

variable "tags" {
  description = "For each stack and what it makes"
  type        = map(string)
  default     = {}
}

resource "aws_cloudformation_stack" "tattle" {
  for_each = var.stacks

  name          = "tattle-${each.key}"
  template_body = file("${path.module}/${each.key}.yaml")
  parameters    = each.value
  capabilities  = ["CAPABILITY_IAM"]
  tags          = var.tags
}

output "instance_profile" {
  description = "The name of iam-role.yaml's instance profile, for instances that run tattle"
  value       = try(aws_cloudformation_stack.tattle["iam-role"].outputs["InstanceProfile"], null)
}

output "outputs" {
  description = "What each stack's template says under Outputs"
  value       = { for name, stack in aws_cloudformation_stack.tattle : name => stack.outputs }
}
